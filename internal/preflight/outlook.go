package preflight

import (
	"fmt"
	"slices"
	"strings"

	"github.com/meshvakt/meshvakt/policies"
)

// class is a group of kinds that one check is about.
type class string

const (
	classNamespaces class = "forecast-namespaces"
	classTemplates  class = "forecast-templates"
	classPods       class = "forecast-pods"
	classPolicies   class = "forecast-policies"
	classIstio      class = "forecast-istio-objects"
)

func classOf(kind string) class {
	switch kind {
	case "Namespace":
		return classNamespaces
	case "Pod":
		return classPods
	case "PeerAuthentication":
		return classPolicies
	}
	for _, p := range policies.All() {
		for _, m := range p.Matches {
			if m.Kind == kind && strings.HasSuffix(m.Group, ".istio.io") {
				return classIstio
			}
		}
	}
	return classTemplates
}

func classes() []class {
	return []class{classNamespaces, classTemplates, classPods, classPolicies, classIstio}
}

// forecastChecks say what enforcing would do to what runs.
func forecastChecks(f *Facts, o *Forecast, why error) []Check {
	checks := []Check{guardedCheck(f, o, why)}
	for _, c := range classes() {
		checks = append(checks, forecastCheck(c, o, why))
	}
	return checks
}

func guardedCheck(f *Facts, o *Forecast, why error) Check {
	const id = "guarded-namespaces"
	if o == nil {
		return unknown(id, orNoState(why))
	}
	c := Check{ID: id, Result: Pass, Found: fmt.Sprintf("%d of %d namespaces (%s)", o.Namespaces.Guarded, o.Namespaces.All, o.Source)}
	var names []string
	for _, ns := range guardedNamespaces(f) {
		names = append(names, ns.Name)
	}
	slices.Sort(names)
	if len(names) > 0 {
		c.Found = fmt.Sprintf("%d of %d namespaces: %s (%s)", o.Namespaces.Guarded, o.Namespaces.All, joined(names), o.Source)
		c.Details = details(selectedInVain(f, f.Judged))
		return c
	}
	c.Result, c.Must = Warn, "be at least one, or nothing is guarded and nothing is forecast"
	c.Remedy = "label namespaces as spec.namespaceSelector of the guard says, or give another guard with --guard"
	return c
}

func orNoState(why error) error {
	if why == nil {
		return ErrNoState
	}
	return why
}

// forecastCheck sums up the kinds of a class.
func forecastCheck(of class, o *Forecast, why error) Check {
	id := string(of)
	if o == nil {
		return unknown(id, orNoState(why))
	}
	var sum KindCount
	for _, k := range o.Kinds {
		if classOf(k.Kind) == of {
			sum.Judged += k.Judged
			sum.Refused += k.Refused
			sum.Warned += k.Warned
			sum.Excepted += k.Excepted
			sum.Outdated += k.Outdated
		}
	}
	c := Check{ID: id, Result: Pass, Found: sum.text()}
	switch {
	case sum.Refused > sum.Outdated:
		c.Result, c.Must, c.Remedy = Fail, refusedMust(of), "see the findings below; a GuardException lets pass what takes longer to mend"
	case sum.Outdated > 0:
		c.Result = Warn
		c.Must = "be replaced: what makes them makes pods that pass"
		c.Remedy = "kubectl rollout restart what they belong to"
	case sum.Warned > 0:
		c.Result, c.Must, c.Remedy = Warn, "be without findings before the guard denies", "see the findings below"
	}
	if c.Result == Fail {
		return c
	}
	var missing []error
	for _, u := range o.unread {
		if u.class == of || u.class == "" {
			missing = append(missing, u.err)
		}
	}
	if len(missing) > 0 {
		u := unknown(id, missing...)
		if sum.Judged > 0 {
			u.Found = sum.text() + "; " + u.Found
		}
		return u
	}
	return c
}

func (k *KindCount) text() string {
	if k.Judged == 0 {
		return "none to judge"
	}
	parts := []string{fmt.Sprintf("%d judged", k.Judged)}
	add := func(n int, what string) {
		if n > 0 {
			parts = append(parts, fmt.Sprintf("%d %s", n, what))
		}
	}
	add(k.Refused, "would be refused")
	add(k.Outdated, "of these only outdated")
	add(k.Warned, "would be warned about")
	add(k.Excepted, "let pass by exceptions")
	if len(parts) == 1 {
		parts = append(parts, "all would pass")
	}
	return strings.Join(parts, ", ")
}

func refusedMust(of class) string {
	switch of {
	case classNamespaces:
		return "be STRICT, with injection, before the guard denies: no pod enters them as they are"
	case classTemplates:
		return "pass, or their next rollout is refused, and so is every pod that replaces one"
	case classPods:
		return "pass, or they do not come back once they end"
	case classPolicies:
		return "pass, or they cannot be applied again once they are gone"
	}
	return "pass, or they cannot be applied again"
}
