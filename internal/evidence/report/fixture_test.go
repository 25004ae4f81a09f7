package report

import (
	"fmt"
	"strings"
	"time"

	"github.com/meshvakt/meshvakt/internal/evidence/verify"
)

const (
	clusterA = "1f0c5f0e-7b5d-4c39-9b39-0b6f5a1f8a01"
	clusterB = "9a7ab2d8-1bb9-4f4c-9a3e-0f4c4b1d2e3f"

	ola  = "p1:zfqifxijljyvdejjfg6gp3tcme"
	kari = "p1:kx2mivv6w6hxwzq5o3v5mzlq4a"
	per  = "p1:t3ajq7s2l5v4j2c6ydn2rnhx3y"

	networks = "security.istio.io/v1/PeerAuthentication"
)

func at(text string) time.Time {
	t, err := time.Parse(time.RFC3339Nano, text)
	if err != nil {
		panic(err)
	}
	return t
}

func origin(cluster, replica string) string {
	return "evidence.example.org/" + cluster + "/" + replica + "/2026q3"
}

// rich is a made-up quarter of two clusters in which everything has happened that a report can tell of.
func rich() Input {
	in := Input{Result: &verify.Result{}, From: at("2026-07-01T00:00:00Z"), To: at("2026-10-01T00:00:00Z"), Told: Told{Policy: true}}
	r := in.Result
	addLogs(r)
	addTimelines(r, in.From, in.To)
	addExceptions(r)
	addEvents(r)
	return in
}

func addLogs(r *verify.Result) {
	for i, l := range []struct{ cluster, replica string }{{clusterA, "meshvakt-0"}, {clusterA, "meshvakt-1"}, {clusterB, "meshvakt-0"}} {
		name := origin(l.cluster, l.replica)
		root := strings.Repeat(string(rune('A'+i)), 43) + "="
		log := verify.Log{
			Origin: name, Cluster: l.cluster, Replica: l.replica, Shard: "2026q3", Size: 132480 + uint64(i)*1733, Root: root,
			Key: name + "+a1b2c3d4+ASFtRtd3R0l3y8eV5tQm3q5yYwqf2S9bJ0m3kq1S4zCk", Trust: verify.TrustGiven,
			Checkpoint: fmt.Sprintf("%s\n%d\n%s\n\n— %s obLD1AAAAA%sAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=\n", name, 132480+i*1733, root, name, strings.Repeat("b", i+1)),
			Closed:     i != 2, From: at("2026-07-01T00:00:00.000012Z"), To: at("2026-09-30T23:59:58.412Z"), Pseudonyms: "k:40b9d4d4066ec8c39685a29114be62cd",
			Clock: verify.Clock{Beats: 132410, MaxError: 12*time.Millisecond + 300*time.Microsecond, Unsynchronised: uint64(i) * 17, Jumps: uint64(i) / 2, Declarations: declaredAt(i), Declared: uint64(i/2) * 9},
		}
		if i < 2 {
			log.Cosignatures = []verify.Cosignature{{Witness: "witness.audit.example.org", At: at("2026-09-30T23:59:59Z")}, {Witness: "witness.example.net", At: at("2026-09-30T23:59:59Z")}}
		}
		if i == 1 {
			log.Unlogged = 43
		}
		r.Logs = append(r.Logs, log)
	}
	r.Logs[2].Trust = verify.TrustChained
}

// changeAt begins an interval that lasts until the next.
type changeAt struct {
	from  string
	grade verify.Grade
	mode  string
	why   string // as the verifier says it
	exc   string
}

func addTimelines(r *verify.Result, from, to time.Time) {
	observed := func(from string) changeAt { return changeAt{from, verify.Observed, "STRICT", "", ""} }
	for _, n := range []struct {
		cluster, name string
		verdict       verify.Verdict
		changes       []changeAt
	}{
		{clusterA, "betaling", verify.NotProvable, []changeAt{observed("2026-07-01T00:00:00Z"),
			{"2026-09-14T02:11:20Z", verify.Unknown, "", "nobody saw it, and not all was the same before and after", ""}, observed("2026-09-14T02:12:01.25Z")}},
		{clusterA, "journal", verify.Holds, []changeAt{observed("2026-07-01T00:00:00Z")}},
		{clusterA, "legacy", verify.NotProvable, []changeAt{observed("2026-07-01T00:00:00Z"),
			{"2026-08-03T09:00:00Z", verify.Excepted, "PERMISSIVE", "a port takes PERMISSIVE", "8d3d7f0a-0000-4000-8000-00000000e031"}, observed("2026-08-24T15:30:00Z")}},
		{clusterA, "portal", verify.IsViolated, []changeAt{observed("2026-07-01T00:00:00Z"),
			{"2026-07-09T10:00:00Z", verify.Unknown, "", "it changed in this time, and nobody saw when", ""}, observed("2026-07-09T10:00:44Z"),
			{"2026-07-19T22:04:11Z", verify.Unknown, "", "it changed in this time, and nobody saw when", ""}, {"2026-07-19T22:04:13Z", verify.Violated, "PERMISSIVE", "a port takes PERMISSIVE; pods run outside of the mesh", ""}, observed("2026-07-20T06:41:55Z")}},
		{clusterB, "betaling", verify.NotProvable, []changeAt{{"2026-07-01T00:00:00Z", verify.Unknown, "", "nobody saw it, and nothing that was seen lies on both sides", ""}, observed("2026-07-06T08:00:00Z"),
			{"2026-08-10T11:00:00Z", verify.Inferred, "STRICT", "nobody saw it; all that it is computed from was the same before and after", ""}, observed("2026-08-10T13:20:00Z"),
			{"2026-09-02T00:00:00Z", verify.ObservedByAudit, "STRICT", "nobody saw it; the audit log of the API server has no change", ""}, observed("2026-09-03T00:00:00Z")}},
		{clusterB, "klinikk", verify.NotProvable, []changeAt{{"2026-07-20T00:00:00Z", unguarded, "", "no guard selects the namespace, or it is not there", ""}, observed("2026-08-15T12:00:00Z")}},
	} {
		line := verify.Timeline{Cluster: n.cluster, Namespace: n.name}
		for i, c := range n.changes {
			end := to
			if i+1 < len(n.changes) {
				end = at(n.changes[i+1].from)
			}
			in := verify.Interval{From: at(c.from), To: end, Grade: c.grade, Mode: c.mode, Why: c.why, Outside: c.grade == verify.Violated}
			if c.grade == unguarded {
				in.Grade, in.Unguarded = verify.Unknown, true
			}
			if c.exc != "" {
				in.Exceptions = []string{c.exc}
			}
			line.Intervals = append(line.Intervals, in)
		}
		if n.name == "portal" {
			line.Moments = []verify.Moment{{From: at("2026-07-09T10:00:00Z"), To: at("2026-07-09T10:00:44Z"), AtLeast: 12 * time.Second, Why: "a port takes PERMISSIVE"}}
		}
		r.Namespaces = append(r.Namespaces, line)
		answer(r, n.cluster, n.name, n.verdict, from, to)
	}
}

func answer(r *verify.Result, cluster, name string, verdict verify.Verdict, from, to time.Time) {
	if len(r.Claims) == 0 {
		r.Claims = []verify.Answer{{Claim: verify.Claim{Text: "mtls=STRICT,namespace=*", MTLS: "STRICT", Namespaces: []string{"*"}, From: from, To: to}, Verdict: verify.IsViolated}}
	}
	r.Claims[0].Namespaces = append(r.Claims[0].Namespaces, verify.NamespaceAnswer{Cluster: cluster, Namespace: name, Verdict: verdict})
}

func addExceptions(r *verify.Result) {
	r.Exceptions = []verify.Exception{
		{Cluster: clusterA, UID: "8d3d7f0a-0000-4000-8000-00000000e031", Namespace: "legacy", Name: "h:aiuek7rjx4tdpj6koz3oqf522a", Rules: []string{"strict-mtls"}, RulesN: 1, Approval: "TwoPerson",
			Reason: "The vendor's appliance speaks no TLS until its upgrade in week 35.", Reference: "CHG-8841", By: ola, Approver: kari,
			Requested: at("2026-08-02T12:00:00Z"), Granted: at("2026-08-03T08:58:30Z"), Until: at("2026-08-31T00:00:00Z"), End: at("2026-08-24T15:30:00Z"), Ended: "revoked", EndedBy: kari,
			Used: 7, FirstUsed: at("2026-08-03T09:00:00Z"), LastUsed: at("2026-08-20T10:15:00Z"), UsesN: 18, Uses: []verify.Use{
				{By: "system:serviceaccount:kube-system:replicaset-controller", GVK: "v1/Pod", N: 6, First: at("2026-08-03T09:00:00Z"), Last: at("2026-08-20T10:15:00Z"), Log: origin(clusterA, "meshvakt-0"), Seq: 31000},
				{By: ola, GVK: "apps/v1/Deployment", N: 1, First: at("2026-08-03T09:00:00Z"), Last: at("2026-08-03T09:00:00Z"), Log: origin(clusterA, "meshvakt-0"), Seq: 30990}},
			Standing: 2, StandingFrom: at("2026-08-03T09:05:00Z"), StandingTo: at("2026-08-24T15:00:00Z")},
		{Cluster: clusterA, UID: "8d3d7f0a-0000-4000-8000-00000000e032", Namespace: "portal", Rules: []string{"mesh-membership/HostNetwork", "sidecar-resources"}, RulesN: 3, Approval: "TwoPerson",
			Reason: "<b>hot</b> fix, =HYPERLINK(\"http://example.com\")", Reference: "=1+1", By: per, Approver: per,
			Requested: at("2026-07-19T21:00:00Z"), Granted: at("2026-07-19T21:01:00Z"), Until: at("2026-07-26T00:00:00Z"), End: at("2026-07-26T00:00:00Z"), Ended: "expired",
			Used: 1, FirstUsed: at("2026-07-19T21:02:00Z"), LastUsed: at("2026-07-19T21:02:00Z"), UsesN: 1, Uses: []verify.Use{{By: per, GVK: networks, N: 1, First: at("2026-07-19T21:02:00Z"), Last: at("2026-07-19T21:02:00Z"), Log: origin(clusterA, "meshvakt-0"), Seq: 27703}}},
		{Cluster: clusterB, UID: "8d3d7f0a-0000-4000-8000-00000000e033", Namespace: "klinikk", Rules: []string{"node-pools"}, RulesN: 1, Approval: "TwoPerson",
			Reason: "Prøve av nye noder " + strings.Repeat("og en lang forklaring til ", 18), Reference: "SAK 26/1187", By: "system:serviceaccount:flux-system:kustomize-controller",
			Requested: at("2026-09-28T10:00:00Z"), Until: at("2026-10-28T00:00:00Z"), End: at("2026-10-28T00:00:00Z")},
		{Cluster: clusterB, UID: "8d3d7f0a-0000-4000-8000-00000000e034", Namespace: "klinikk", Rules: []string{"node-pools"}, RulesN: 1, Approval: "TwoPerson",
			Reason: "name\u202egpj.exe\x1b[31m red\nsecond line", Reference: "\u2066X\u2069-1", By: ola, Approver: kari,
			Requested: at("2026-09-01T10:00:00Z"), Granted: at("2026-09-01T11:00:00Z"), Until: at("2026-12-01T00:00:00Z"), End: at("2026-12-01T00:00:00Z"),
			Used: 12403, FirstUsed: at("2026-09-01T11:00:01Z"), LastUsed: at("2026-09-30T23:00:00Z"), UsesN: 1, Uses: []verify.Use{{By: "system:serviceaccount:klinikk:prober", GVK: "v1/Pod", N: 12403, First: at("2026-09-01T11:00:01Z"), Last: at("2026-09-30T23:00:00Z"), Log: origin(clusterB, "meshvakt-0"), Seq: 900}}},
	}
}

func addEvents(r *verify.Result) {
	a0, a1, b0 := origin(clusterA, "meshvakt-0"), origin(clusterA, "meshvakt-1"), origin(clusterB, "meshvakt-0")
	r.Findings = []verify.Finding{
		{Code: verify.FindingUnexplained, Cluster: clusterA, Namespace: "portal", Log: a0, Seq: 27811, From: at("2026-07-19T22:04:13Z"), To: at("2026-07-19T22:04:13Z"), What: `PeerAuthentication in "portal" changed and no allowed request explains it`},
		{Code: verify.FindingSelfApproved, Cluster: clusterA, Namespace: "portal", Log: a0, Seq: 27702, From: at("2026-07-19T21:01:00Z"), To: at("2026-07-19T21:01:00Z"), What: "an exception was approved by whoever asked for it"},
		{Code: verify.FindingMissingLog, Cluster: clusterB, Log: b0, Seq: -1, From: at("2026-07-01T00:00:00Z"), To: at("2026-07-06T08:00:00Z"), What: `replica "meshvakt-1" was ready and its log is not here`},
	}
	r.Gaps = []verify.Gap{
		{Cluster: clusterA, Log: a1, Seq: 40021, Of: "decisions", Cause: "full", From: at("2026-08-20T03:12:00Z"), To: at("2026-08-20T03:19:40.5Z"), Exact: true, Counts: []verify.GapCount{{Verdict: "allow", GVK: "v1/Pod", N: 41}, {Verdict: "deny", GVK: networks, N: 2}}},
		{Cluster: clusterA, Log: a0, Seq: 108444, Of: "observation", Cause: "crash", From: at("2026-09-14T02:11:20Z"), To: at("2026-09-14T02:12:01.25Z")},
		{Cluster: clusterB, Log: b0, Seq: 51200, Of: "decisions", Cause: "crash", From: at("2026-08-10T11:00:00Z"), To: at("2026-08-10T13:20:00Z")},
	}
	months := []string{"2026-07-08", "2026-07-19", "2026-08-11", "2026-08-12", "2026-09-23"}
	for i := range 14 {
		r.Refusals.List = append(r.Refusals.List, verify.Refusal{
			Cluster: clusterA, Log: a0, Seq: int64(11000 + 7000*i), At: at(months[i*len(months)/14] + fmt.Sprintf("T%02d:30:00Z", i)), Operation: "UPDATE", GVK: networks,
			Namespace: []string{"betaling", "portal"}[i%2], Name: "h:aiuek7rjx4tdpj6koz3oqf522a", By: []string{ola, kari, per}[i%3], Rules: [][]string{{"MV103"}, {"MV201", "MV206"}, {"MV103", "MV104"}}[i%3], Verdict: "deny"})
	}
	r.Refusals.List[13].Verdict = "error"
	r.Refusals.Total, r.Refusals.Errors = 13, 1
	r.Changes = []verify.Change{
		{Cluster: clusterA, Log: a0, Seq: 9120, At: at("2026-07-07T08:00:00Z"), GVK: "meshvakt.io/v1alpha1/MeshGuard", Name: "default", What: "changed", By: ola, Request: "5e0b6a4e-1111-4111-8111-111111111111", Reason: "portal is guarded from now on"},
		{Cluster: clusterA, Log: a0, Seq: 27790, At: at("2026-07-19T22:04:01Z"), GVK: "admissionregistration.k8s.io/v1/ValidatingWebhookConfiguration", Name: "meshvakt", What: "deleted", Weaker: true},
		{Cluster: clusterA, Log: a0, Seq: 27812, At: at("2026-07-19T22:04:16Z"), GVK: "admissionregistration.k8s.io/v1/ValidatingWebhookConfiguration", Name: "meshvakt", What: "repaired", By: "system:serviceaccount:meshvakt-system:meshvakt", Request: "5e0b6a4e-2222-4222-8222-222222222222"},
	}
	r.Remediations = []verify.Remediation{
		{Cluster: clusterA, Log: a0, Seq: 27901, What: "restored", GVK: networks, Namespace: "portal", Outcome: "done", Tries: 3, After: at("2026-07-19T22:04:11Z"), Found: at("2026-07-19T22:04:13Z"), Done: at("2026-07-20T06:41:55Z")},
		{Cluster: clusterA, Log: a0, Seq: 27813, What: "own", GVK: "admissionregistration.k8s.io/v1/ValidatingWebhookConfiguration", Outcome: "failed", Tries: 1, After: at("2026-07-19T22:04:01Z"), Found: at("2026-07-19T22:04:01Z"), Done: at("2026-07-19T22:04:02Z")},
	}
	run := verify.Run{Cluster: clusterA, Version: "v0.2.0", Binary: "9a3a45d01531a20e89ac6ae10b0b0beb0492acd7216a368aa062d1a5fecaf9cd", Policies: "5b3a02e57af9b55aae545b599baa6a6798a364d8d2798a38536249f77e30fe5f"}
	for _, e := range []struct{ cluster, replica, from, to, ended string }{
		{clusterA, "meshvakt-0", "2026-07-01T00:00:00Z", "2026-09-14T02:11:20Z", "crashed"}, {clusterA, "meshvakt-0", "2026-09-14T02:12:01.25Z", "2026-09-30T23:59:58Z", ""},
		{clusterA, "meshvakt-1", "2026-07-01T00:00:00Z", "2026-09-14T02:11:20Z", "terminated"}, {clusterB, "meshvakt-0", "2026-07-06T08:00:00Z", "2026-09-30T23:59:58Z", ""},
	} {
		run.Cluster, run.Replica, run.Started, run.Last, run.Ended = e.cluster, e.replica, at(e.from), at(e.to), e.ended
		r.Runs = append(r.Runs, run)
	}
	r.Keys = []verify.Key{
		{Cluster: clusterA, Log: a0, Seq: 1, At: at("2026-07-01T00:00:01Z"), What: "created", For: "pseudonyms", ID: "k:40b9d4d4066ec8c39685a29114be62cd"},
		{Cluster: clusterA, Log: a0, Seq: 61200, At: at("2026-08-14T09:00:00Z"), What: "used", For: "pseudonyms", ID: "k:40b9d4d4066ec8c39685a29114be62cd", Origin: a0, By: kari, Why: "Access request 2026-14", N: 31},
		{Cluster: clusterA, Log: a0, Seq: 88000, At: at("2026-09-01T00:00:00Z"), What: "destroyed", For: "pseudonyms", ID: "k:0d5c1bb2f2e06d3f1f7a3f0c5a9a8e11", Origin: strings.Replace(a0, "2026q3", "2025q2", 1), By: "system:serviceaccount:meshvakt-system:meshvakt", Why: "retention"},
	}
}

// declaredAt is what operators say of the clocks of some replicas.
func declaredAt(i int) []verify.Declaration {
	return []verify.Declaration{{Source: "chrony on the node", MaxError: 500 * time.Millisecond}, {Source: "=a sundial", MaxError: 3 * time.Second}}[:min(i, 2)]
}
