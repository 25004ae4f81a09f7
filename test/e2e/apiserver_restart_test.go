package e2e

import (
	"bytes"
	"fmt"
	"strings"
	"syscall"
	"testing"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"github.com/meshvakt/meshvakt/api/v1alpha1"
	"github.com/meshvakt/meshvakt/internal/evidence/record"
	"github.com/meshvakt/meshvakt/internal/evidence/verify"
	"github.com/meshvakt/meshvakt/test/controlplane"
	"github.com/meshvakt/meshvakt/test/tmpfs"
)

// outage is when there was no API server, as the test knows it.
type outage struct {
	began  time.Time // the process is gone
	edited time.Time // a policy is changed in etcd
	over   time.Time // it answers again
}

// TestAPIServerRestart kills the API server under a replica that keeps evidence, and brings it back
// when watches have been broken for longer than readiness allows. Meanwhile somebody with access to
// etcd makes a namespace take plain text. The log must tell of that, and when it can have been;
// of nothing that was not; and must not claim to have seen what nobody saw.
func TestAPIServerRestart(t *testing.T) {
	ownPlane(t, controlplane.Options{Log: t.Output()})
	guard(t, defaultGuard(v1alpha1.OnMissingReject))
	dir := tmpfs.TempDir(t)
	address := freeAddress(t)
	// A leader that cannot renew its Lease ends, which is another story than this one.
	args := append([]string{"--listen", address, "--webhook-url", "https://" + address, "--leader-elect=false", "--evidence-beat", "2s"}, evidenceOf(dir)...)
	r := startReplica(t, args...).ready(t.Context())
	enforcing(t, "default")
	sealer := sealing(t, dir)
	dev := clientFor(t, controlplane.Developer)
	quiet, edited := unique("quiet"), unique("edited")
	know := map[string][]truth{}
	since := func(namespace string, began time.Time, grade verify.Grade) {
		know[namespace] = append(know[namespace], truth{began, time.Now(), grade})
	}
	for _, ns := range []string{quiet, edited} {
		create(t, dev, namespace(ns, false), policy(ns, "default", "STRICT"))
		began := time.Now()
		must(t, relabel(t.Context(), dev, namespace(ns, false), v1alpha1.GuardedLabel, "true"))
		since(ns, began, verify.Observed)
	}
	margin := clockError()
	pass := func() { waitUntil(t, time.Now().Add(2*margin+20*time.Second)) } // long enough for the clock's error not to hide it
	pass()

	var o outage
	began := time.Now()
	must(t, plane.Kill(controlplane.APIServer))
	o.began = time.Now()
	since(quiet, began, verify.Inferred)
	since(edited, began, verify.Unknown)
	o.edited = time.Now()
	must(t, plane.EditStored(t.Context(), "/registry/security.istio.io/peerauthentications/"+edited+"/default", func(object []byte) ([]byte, error) {
		weak := bytes.Replace(object, []byte(`"STRICT"`), []byte(`"PERMISSIVE"`), 1)
		if bytes.Equal(weak, object) {
			return nil, fmt.Errorf("no mode in %s", object)
		}
		return weak, nil
	}))
	cannotVouch(t, r)
	waitUntil(t, o.began.Add(2*margin+20*time.Second))

	must(t, plane.Restart(t.Context(), controlplane.APIServer))
	o.over = time.Now()
	// The first that is asked about is answered.
	if err := dev.Create(t.Context(), weakPolicy(quiet, "weak")); !apierrors.IsForbidden(err) || !strings.Contains(err.Error(), "MV103") {
		t.Errorf("a weak policy, right after the API server came back: %v", err)
	}
	r.ready(t.Context())
	eventually(t, 30*time.Second, func() error {
		if table, _ := observedTable(t, sealed(t, dir)); table[edited].Mode != "PERMISSIVE" { // the spool has let go of it
			return fmt.Errorf("namespace %q is recorded as %q", edited, table[edited].Mode)
		}
		return nil
	})
	since(quiet, o.over, verify.Observed)
	since(edited, o.over, verify.Violated)
	t.Logf("ready, and the change is recorded, %s after the API server came back", time.Since(o.over).Round(time.Millisecond))
	pass()
	end := time.Now()
	pass()
	r.stop()
	unregister(t)
	must(t, sealer.Process.Signal(syscall.SIGTERM))
	must(t, sealer.Wait())

	outageIsTold(t, sealed(t, dir), edited, &o)
	result := verified(t, dir, end)
	for ns, known := range know {
		agree(t, result, ns, known, end, margin)
	}
	unexplained := 0
	for _, f := range result.Findings {
		t.Logf("finding %s %s %s to %s: %s", f.Code, f.Namespace, f.From.Format(time.TimeOnly), f.To.Format(time.TimeOnly), f.What)
		switch {
		case f.Code == verify.FindingUnexplained && f.Namespace == edited:
			unexplained++
		case f.Code == verify.FindingNotAsked && !f.To.Before(o.began): // nobody could ask
		default:
			t.Errorf("finding %s about %q: nothing of the sort has happened", f.Code, f.Namespace)
		}
	}
	if unexplained != 1 {
		t.Errorf("%d changes are unexplained; must be the one in etcd", unexplained)
	}
}

// cannotVouch waits until the replica says that it cannot vouch for what it knows, and goes on running.
func cannotVouch(t *testing.T, r *replica) {
	t.Helper()
	eventually(t, 90*time.Second, func() error {
		body, err := get(t.Context(), "http://"+r.operations+"/readyz")
		if err == nil || !strings.Contains(body, "[-] facts: watch of ") {
			return fmt.Errorf("readyz: %v\n%s", err, body)
		}
		return nil
	})
	if body, err := get(t.Context(), "http://"+r.operations+"/healthz"); err != nil {
		t.Errorf("healthz, which a restart follows: %v\n%s", err, body)
	}
	select {
	case <-r.exited:
		t.Fatalf("meshvakt serve ended: %v", r.exitErr)
	default:
	}
}

// outageIsTold holds what the log says against what was.
func outageIsTold(t *testing.T, log []record.Record, edited string, o *outage) {
	t.Helper()
	var before, after *record.Beat
	blind, relists, told := 0, 0, 0
	for _, r := range log {
		switch b := r.Body.(type) {
		case *record.Beat:
			switch {
			case r.Time.Before(o.began):
				before = b
			case r.Time.Before(o.over):
				blind++
				for _, w := range b.Watches {
					if w.Healthy {
						t.Errorf("the beat at %s says that there is a watch of %s; the API server is down since %s", r.Time, w.GVK, o.began)
					}
				}
			default:
				after = b
			}
		case *record.Snapshot:
			if b.Why == "relist" && b.Part == b.Of {
				relists++
				if r.Time.Before(o.began) {
					t.Errorf("all was listed anew at %s; the API server was well until %s", r.Time, o.began)
				}
			}
			for _, row := range b.Rows {
				if row.Namespace == edited && row.Mode == "PERMISSIVE" && told == 0 {
					told++
					if b.After.After(o.edited) || r.Time.Before(o.edited) {
						t.Errorf("the change is told between %s and %s; it was made at %s", b.After, r.Time, o.edited)
					}
					t.Logf("the change at %s is told between %s and %s", o.edited, b.After, r.Time)
				}
			}
		case *record.State:
			if b.Row.Namespace == edited && b.Row.Mode == "PERMISSIVE" && told == 0 {
				told++
				if b.After.After(o.edited) || r.Time.Before(o.edited) {
					t.Errorf("the change is told between %s and %s; it was made at %s", b.After, r.Time, o.edited)
				}
			}
		}
	}
	if before == nil || after == nil || blind < 5 || relists == 0 || told != 1 {
		t.Fatalf("beats before and after: %v, %v; %d beats without an API server, %d lists from anew, the change told %d times; must be beats before and after, at least 5, one, and 1",
			before != nil, after != nil, blind, relists, told)
	}
	for i, w := range after.Watches {
		if !w.Healthy {
			t.Errorf("the watch of %s was not opened again", w.GVK)
		}
		if was := before.Watches[i]; w.GVK != was.GVK || w.Epoch < was.Epoch {
			t.Errorf("the watch %+v was %+v", w, was)
		}
	}
	if !after.Enforcing {
		t.Error("the last beat says that nobody is asked")
	}
}
