package observe

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/meshvakt/meshvakt/api/v1alpha1"
	"github.com/meshvakt/meshvakt/internal/evidence/record"
)

// course is what records say of exceptions, in a word each.
func course(list []record.Record) []string {
	var words []string
	for _, r := range list {
		switch b := r.Body.(type) {
		case *record.ExceptionRequested:
			words = append(words, "requested")
		case *record.ExceptionGranted:
			words = append(words, "granted")
		case *record.ExceptionRevoked:
			words = append(words, b.How)
		case *record.ExceptionExpired:
			words = append(words, "expired")
		}
	}
	return words
}

// changed is the exception with another generation.
func changed(edit func(*v1alpha1.GuardExceptionSpec), generation int64) *v1alpha1.GuardException {
	e := exceptionOf("prod", "x")
	e.Generation = generation
	edit(&e.Spec)
	return e
}

func approve(s *v1alpha1.GuardExceptionSpec) { s.Approved, s.Approver = true, "kari@example.org" }

func TestCourseOfExceptions(t *testing.T) {
	ends := exceptionOf("prod", "x").Spec.ExpiresAt.Time
	sooner := metav1.NewTime(ends.Add(-time.Hour))
	granted := changed(approve, 2)
	for name, c := range map[string]struct {
		steps []func(s *setting)
		want  string
	}{
		"asked for":              {nil, "requested"},
		"asked for and approved": {[]func(*setting){func(s *setting) { s.set(granted) }}, "requested granted"},
		"approved by the one who asked": {[]func(*setting){func(s *setting) {
			s.set(changed(func(s *v1alpha1.GuardExceptionSpec) { s.Approved, s.Approver = true, s.Requester }, 2))
		}}, "requested"},
		"asked for on other terms": {[]func(*setting){func(s *setting) {
			s.set(changed(func(s *v1alpha1.GuardExceptionSpec) { s.Reason = "another" }, 2))
		}}, "requested requested"},
		"revoked": {[]func(*setting){
			func(s *setting) { s.set(granted) },
			func(s *setting) {
				s.set(changed(func(s *v1alpha1.GuardExceptionSpec) { approve(s); s.Revoked = true }, 3))
			},
		}, "requested granted revoked"},
		"shortened": {[]func(*setting){
			func(s *setting) { s.set(granted) },
			func(s *setting) {
				s.set(changed(func(s *v1alpha1.GuardExceptionSpec) { approve(s); s.ExpiresAt = sooner }, 3))
			},
		}, "requested granted shortened"},
		"deleted": {[]func(*setting){
			func(s *setting) { s.set(granted) }, func(s *setting) { s.remove(granted) },
		}, "requested granted deleted"},
		"it ends": {[]func(*setting){
			func(s *setting) { s.set(granted) }, func(s *setting) { s.pass(time.Until(ends) + 2*time.Second) },
		}, "requested granted expired"},
		"it ends and is deleted": {[]func(*setting){
			func(s *setting) { s.set(granted) }, func(s *setting) { s.pass(time.Until(ends) + 2*time.Second) }, func(s *setting) { s.remove(granted) },
		}, "requested granted expired"},
		"the guard takes none any more, and then does": {[]func(*setting){
			func(s *setting) { s.set(granted) },
			func(s *setting) { g := defaultGuard(); g.Generation, g.Spec.Exceptions = 2, nil; s.set(g) },
			func(s *setting) { g := defaultGuard(); g.Generation = 3; s.set(g) },
		}, "requested granted revoked granted"},
		"revoked while nothing could be written": {[]func(*setting){
			func(s *setting) { s.set(granted) },
			func(s *setting) { s.log.breaks(unix.EIO) },
			func(s *setting) { s.remove(granted) },
			func(s *setting) { s.log.breaks(nil) },
		}, "requested granted deleted"},
		"after a gap those in force are told again": {[]func(*setting){
			func(s *setting) { s.set(granted) },
			func(s *setting) { s.log.breaks(unix.EIO) },
			func(s *setting) { s.pass(time.Minute) },
			func(s *setting) { s.log.breaks(nil) },
		}, "requested granted requested granted"},
	} {
		t.Run(name, func(t *testing.T) {
			inCluster(t, func(t *testing.T, s *setting) {
				s.opened()
				for _, step := range c.steps {
					step(s)
					s.pass(3 * time.Second)
				}
				if got := strings.Join(course(s.log.told()), " "); got != c.want {
					t.Errorf("told %q; want %q", got, c.want)
				}
			}, append(prod(), exceptionOf("prod", "x"))...)
		})
	}
}

// TestExceptionRecords: who, what, why and until when; persons by pseudonym.
func TestExceptionRecords(t *testing.T) {
	inCluster(t, func(t *testing.T, s *setting) {
		s.opened()
		s.set(changed(approve, 2))
		s.pass(3 * time.Second)
		ends := exceptionOf("prod", "x").Spec.ExpiresAt.Time
		p := record.NewPseudonymiser(s.log.key)
		list := s.log.told()
		asked, granted := of[*record.ExceptionRequested](list)[0], of[*record.ExceptionGranted](list)[0]
		if asked.By != p.Subject("ola@example.org") || asked.Reason != "vendor appliance" || asked.Reference != "CHG-8841" || asked.Approval != "TwoPerson" || !asked.Until.Equal(ends) ||
			!slices.Equal(asked.Rules, []string{"mesh-membership/HostNetwork", "strict-mtls"}) {
			t.Errorf("%+v", asked)
		}
		if granted.By != p.Subject("kari@example.org") || granted.For != asked.By || granted.Object.UID != asked.Object.UID || granted.Object.Digest == asked.Object.Digest {
			t.Errorf("%+v", granted)
		}
		s.pass(time.Until(ends) + time.Second)
		for _, r := range s.log.told() {
			if b, ok := r.Body.(*record.ExceptionExpired); ok {
				if late := r.Time.Sub(ends); late < 0 || late > tick || !b.Until.Equal(ends) {
					t.Errorf("the end at %s was told at %s: %+v", ends, r.Time, b)
				}
				return
			}
		}
		t.Error("its end was not told")
	}, append(prod(), exceptionOf("prod", "x"))...)
}

// TestExceptionThatCannotBeRecorded keeps no other from being told.
func TestExceptionThatCannotBeRecorded(t *testing.T) {
	odd := exceptionOf("prod", "odd")
	odd.Spec.Reason = strings.Repeat("x", 600) // which the API server refuses
	inCluster(t, func(t *testing.T, s *setting) {
		s.log.tolerant = true
		s.opened()
		s.pass(time.Minute)
		if got := fmt.Sprint(course(s.log.told())); got != "[requested]" {
			t.Errorf("told %s", got)
		}
		if gaps := of[*record.Gap](s.log.told()); len(gaps) != 0 {
			t.Errorf("%+v", gaps[0])
		}
	}, append(prod(), odd, exceptionOf("prod", "x"))...)
}
