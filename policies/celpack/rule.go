package celpack

import (
	"fmt"
	"slices"
	"strings"

	"github.com/meshvakt/meshvakt/policies"
)

// rule finds one kind of breach, or several that share a reason.
type rule struct {
	reason string // the name of a policies.Reason
	// templates: what the rule reads can be told from a template as well. What it
	// cannot be told from, pods are judged by once they are there.
	templates bool
	// how says by what the rule decides, for the page of the pack.
	how string
	// found are CEL expressions of the type list(string) over the side s: the texts
	// of the findings.
	found []string
}

// variable is the name of the CEL variable that holds what the rule finds.
func (r *rule) variable() string {
	suffix := "Pods"
	if r.templates {
		suffix = ""
	}
	return strings.ToLower(r.reason[:1]) + r.reason[1:] + suffix
}

// expression is the CEL variable: for each side of the request the findings, one
// per line.
func (r *rule) expression() string {
	found := strings.Join(r.found, "\n+ ")
	if !r.templates {
		found = "!variables.isPod ? [] : (\n" + found + ")"
	}
	return "variables.sides.map(s, (\n" + found + "\n).join('\\n'))"
}

// reasonOf returns the reason of mesh-membership of a name, the zero Reason where
// there is none.
func reasonOf(name string) policies.Reason {
	reasons := policies.MeshMembership().Reasons
	if i := slices.IndexFunc(reasons, func(r policies.Reason) bool { return r.Name == name }); i >= 0 {
		return reasons[i]
	}
	return policies.Reason{}
}

// say is the CEL expression of a finding's text, as policies.Finding has it.
// Field, message and remedy are texts; see text.
func say(reason, field, message, remedy string) string {
	return "variables.at + " + text(field+": "+message+" ["+reasonOf(reason).Code+"]; "+remedy)
}

// text turns a text with expressions in double angle brackets into one CEL
// expression: "port <<p>>" becomes 'port ' + (p).
func text(t string) string {
	var parts []string
	for t != "" {
		plain, rest, _ := strings.Cut(t, "<<")
		if plain != "" {
			parts = append(parts, literal(plain))
		}
		expression, after, found := strings.Cut(rest, ">>")
		if found {
			parts = append(parts, "("+expression+")")
		}
		t = after
	}
	return strings.Join(parts, " + ")
}

// literal is a string in CEL.
func literal(s string) string {
	return "'" + strings.NewReplacer(`\`, `\\`, `'`, `\'`, "\n", `\n`).Replace(s) + "'"
}

// list is a list of strings in CEL.
func list(values []string) string {
	quoted := make([]string, len(values))
	for i, v := range values {
		quoted[i] = literal(v)
	}
	return "[" + strings.Join(quoted, ", ") + "]"
}

// quoted is the CEL expression that repeats a value, shortened, as messages of the
// policies do.
func quoted(v string) string {
	return fmt.Sprintf("strings.quote(size(%[1]s) > 80 ? %[1]s.substring(0, 80) + '…' : %[1]s)", v)
}

// when is a list with one finding if the condition holds.
func when(condition, finding string) string {
	return fmt.Sprintf("(%s ? [%s] : [])", condition, finding)
}

// object and array read a field that may be absent or null: an expression that
// fails would refuse what is harmless.
func object(optional string) string {
	return "optional.ofNonZeroValue(" + optional + ".orValue(dyn(null))).orValue({})"
}

func array(optional string) string {
	return "optional.ofNonZeroValue(" + optional + ".orValue(dyn(null))).orValue([])"
}

// guard names the MeshGuard in a text.
const guard = "MeshGuard <<variables.guardName>>"

// annotation is a list with a finding about an annotation that is there, not empty,
// and meets the condition; v is its value in condition and texts.
func annotation(reason, key, condition, message, remedy string) string {
	return fmt.Sprintf("[s.annotations[?%s].orValue('').trim()].filter(v, v != '' && (%s)).map(v, %s)",
		literal(key), condition, say(reason, "metadata.annotations["+key+"]", message, remedy))
}

// presentAnnotation is annotation for one whose empty value counts too.
func presentAnnotation(reason, key, condition, message, remedy string) string {
	return fmt.Sprintf("(%[1]s in s.annotations ? [s.annotations[%[1]s].trim()] : []).filter(v, %[2]s).map(v, %[3]s)",
		literal(key), condition, say(reason, "metadata.annotations["+key+"]", message, remedy))
}

// entries is the CEL expression of the entries of a list with commas.
func entries(v string) string {
	return v + ".split(',').map(e, e.trim()).filter(e, e != '')"
}

// ports names the entries of a list of ports.
func ports(l string) string {
	return fmt.Sprintf("(size(%[1]s) == 1 ? 'port ' : 'ports ') + %[2]s", l, quoted(l+".join(',')"))
}
