package policies

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/meshvakt/meshvakt/internal/mesh"
)

// quotedAtMost bounds, in bytes, what a message repeats of a value that anybody
// may have written.
const quotedAtMost = 80

// quote repeats a value, shortened.
func quote(v string) string {
	if len(v) > quotedAtMost {
		cut := quotedAtMost
		for cut > 0 && !utf8.RuneStart(v[cut]) {
			cut--
		}
		v = v[:cut] + "…"
	}
	return fmt.Sprintf("%q", v)
}

// portList names ports as they were written.
func portList(ports []string) string {
	if len(ports) == 1 {
		return "port " + quote(ports[0])
	}
	return "ports " + quote(strings.Join(ports, ","))
}

// splitList takes a list apart as Istio does, without empty entries.
func splitList(list string) []string {
	var entries []string
	for _, e := range strings.Split(list, ",") {
		if e = strings.TrimSpace(e); e != "" {
			entries = append(entries, e)
		}
	}
	return entries
}

func sortedKeys[K cmp.Ordered, V any](m map[K]V) []K { return slices.Sorted(maps.Keys(m)) }

// revisionsText names the revisions and tags that injectors serve; there are some,
// or none of them would be missing.
func revisionsText(i mesh.Injection) string {
	var names []string
	for _, h := range i.Webhooks {
		names = append(names, cmp.Or(h.Tag, h.Revision))
	}
	slices.Sort(names)
	names = slices.Compact(names)
	return firstOf(names[:min(len(names), 10)], len(names))
}
