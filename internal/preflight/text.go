package preflight

import (
	"fmt"
	"maps"
	"slices"
	"strings"
)

// namedAtMost bounds how many names a sentence holds.
const namedAtMost = 4

// quoted is a list of names in a sentence.
func quoted(names []string) string {
	parts := make([]string, 0, namedAtMost)
	for _, n := range names[:min(len(names), namedAtMost)] {
		parts = append(parts, fmt.Sprintf("%q", n))
	}
	if more := len(names) - namedAtMost; more > 0 {
		return fmt.Sprintf("%s and %d more", strings.Join(parts, ", "), more)
	}
	return strings.Join(parts, ", ")
}

// joined is quoted without quotes.
func joined(texts []string) string {
	if more := len(texts) - namedAtMost; more > 0 {
		return fmt.Sprintf("%s and %d more", strings.Join(texts[:namedAtMost], ", "), more)
	}
	return strings.Join(texts, ", ")
}

func counted(n int, one, several string) string {
	if n == 1 {
		return "1 " + one
	}
	return fmt.Sprintf("%d %s", n, several)
}

func sortedKeys[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }
