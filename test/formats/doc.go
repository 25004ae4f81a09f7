// Package formats holds what `meshvakt check` prints for other programs against what
// those go by: SARIF against the schema that OASIS publishes, JUnit against a library
// that reads it. It is a module of its own, so that these stay out of ours.
package formats
