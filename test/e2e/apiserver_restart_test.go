package e2e

import (
	"bytes"
	"fmt"
	"slices"
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
	over   time.Time // it is started again
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
	args := append([]string{"--listen", address, "--webhook-url", "https://" + address, "--evidence-beat", "2s",
		"--evidence-clock-error", margin.String(), "--evidence-clock-source", "the test, which goes by the same clock"}, evidenceOf(dir)...)
	r := startReplica(t, args...).ready(t.Context())
	enforcing(t, "default")
	sealer := sealing(t, dir)
	dev := clientFor(t, controlplane.Developer)
	quiet, edited := unique("quiet"), unique("edited")
	for _, ns := range []string{quiet, edited} {
		create(t, dev, namespace(ns, false), policy(ns, "default", "STRICT"))
		must(t, relabel(t.Context(), dev, namespace(ns, false), v1alpha1.GuardedLabel, "true"))
	}
	// Long enough for the API server to say how far it is, and not to be hidden by the error of the clock.
	const lasts = 2*margin + heard + 5*time.Second
	waitUntil(t, time.Now().Add(lasts))

	var o outage
	must(t, plane.Kill(controlplane.APIServer))
	o.began = time.Now()
	must(t, plane.EditStored(t.Context(), "/registry/security.istio.io/peerauthentications/"+edited+"/default", func(object []byte) ([]byte, error) {
		weak := bytes.Replace(object, []byte(`"STRICT"`), []byte(`"PERMISSIVE"`), 1)
		if bytes.Equal(weak, object) {
			return nil, fmt.Errorf("no mode in %s", object)
		}
		o.edited = time.Now()
		return weak, nil
	}))
	cannotVouch(t, r)
	waitUntil(t, o.began.Add(lasts))

	o.over = time.Now()
	must(t, plane.Restart(t.Context(), controlplane.APIServer))
	back := time.Now()
	// The first that is asked about is answered.
	if err := dev.Create(t.Context(), weakPolicy(quiet, "weak")); !apierrors.IsForbidden(err) || !strings.Contains(err.Error(), "MV103") {
		t.Errorf("a weak policy, right after the API server came back: %v", err)
	}
	r.ready(t.Context())
	eventually(t, 60*time.Second, func() error {
		if table, _ := observedTable(t, sealed(t, dir)); table[edited].Mode != "PERMISSIVE" { // the spool has let go of it
			return fmt.Errorf("namespace %q is recorded as %q", edited, table[edited].Mode)
		}
		return nil
	})
	t.Logf("ready, and the change is recorded, %s after the API server came back", time.Since(back).Round(time.Millisecond))
	waitUntil(t, time.Now().Add(lasts))
	r.stop()
	unregister(t)
	must(t, sealer.Process.Signal(syscall.SIGTERM))
	must(t, sealer.Wait())

	outageIsTold(t, sealed(t, dir), edited, &o)
	result := verified(t, dir, time.Now())
	outageIsGraded(t, result, quiet, edited, &o)
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

// outageIsGraded holds what the verifier says of the time before, in and after the outage against what
// was. No border may be on the wrong side, whatever the clock.
func outageIsGraded(t *testing.T, result *verify.Result, quiet, edited string, o *outage) {
	t.Helper()
	for _, ns := range []string{quiet, edited} {
		at := slices.IndexFunc(result.Namespaces, func(l verify.Timeline) bool { return l.Namespace == ns })
		if at < 0 {
			t.Errorf("nothing is said of namespace %s", ns)
			continue
		}
		in, after := verify.Inferred, verify.Observed
		if ns == edited {
			in, after = verify.Unknown, verify.Violated
		}
		var before, meanwhile, afterwards bool
		for _, i := range result.Namespaces[at].Intervals {
			t.Logf("namespace %s: %s from %s to %s", ns, i.Grade, i.From.Format(time.TimeOnly), i.To.Format(time.TimeOnly))
			blind := i.From.Before(o.over) && i.To.After(o.began)
			switch {
			case i.Grade == verify.Observed && blind:
				t.Errorf("namespace %s: nobody can have observed from %s to %s: there was no API server from %s to %s", ns, i.From, i.To, o.began, o.over)
			case i.Grade == verify.Violated && (ns == quiet || i.From.Before(o.edited)):
				t.Errorf("namespace %s: nothing was violated from %s on; the other namespace was, from %s", ns, i.From, o.edited)
			case ns == edited && i.To.After(o.edited) && (i.Grade == verify.Observed || i.Grade == verify.Inferred):
				t.Errorf("namespace %s is called %s from %s to %s; it was not STRICT any more from %s", ns, i.Grade, i.From, i.To, o.edited)
			}
			before = before || i.Grade == verify.Observed && i.To.Before(o.began)
			meanwhile = meanwhile || i.Grade == in && blind
			afterwards = afterwards || i.Grade == after && i.To.After(o.over)
		}
		if !before || !meanwhile || !afterwards {
			t.Errorf("namespace %s is OBSERVED before: %v; %s meanwhile: %v; %s afterwards: %v; must be all three", ns, before, in, meanwhile, after, afterwards)
		}
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

// watchesOf are the kinds of which a beat says that there is a watch.
func watchesOf(b *record.Beat) (open []string) {
	for _, w := range b.Watches {
		if w.Healthy {
			open = append(open, w.GVK)
		}
	}
	return open
}

// outageIsTold holds what the log says against what was.
func outageIsTold(t *testing.T, log []record.Record, edited string, o *outage) {
	t.Helper()
	var before, after *record.Beat
	meanwhile, blind, relists, told := 0, 0, 0, 0
	for _, r := range log {
		switch b := r.Body.(type) {
		case *record.Beat:
			switch {
			case r.Time.Before(o.began):
				before = b
			case r.Time.Before(o.over):
				// One that is due at the very moment may be told before the end of the connections is noticed; what is made of
				// it is graded.
				open := watchesOf(b)
				if meanwhile++; len(open) > 0 && meanwhile > 1 {
					t.Errorf("the beat at %s says that there are watches of %q; the API server is down since %s", r.Time, open, o.began)
				}
				if len(open) == 0 {
					blind++
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
	if before == nil || after == nil || blind < 2 || relists == 0 || told != 1 {
		t.Fatalf("beats before and after: %v, %v; %d beats without an API server, %d lists from anew, the change told %d times; must be beats before and after, at least 2, one, and 1",
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
