package verify

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
	"time"
	"unicode"

	"github.com/meshvakt/meshvakt/internal/evidence/record"
)

// Readable is a record for people, in one line: when, where, what, and its fields. Text that
// people wrote is quoted, and cannot move a cursor or turn the direction of a line.
func Readable(origin string, r record.Record) (string, error) {
	line, err := record.Encode(r)
	if err != nil {
		return "", err
	}
	var b strings.Builder
	fmt.Fprintf(&b, "%s %s#%d %s", r.Time.UTC().Format(time.RFC3339Nano), origin, r.Seq, r.Body.Kind())
	d := json.NewDecoder(bytes.NewReader(line))
	d.UseNumber()
	if err := flatten(&b, d, "", map[string]bool{"v": true, "kind": true, "seq": true, "prev": true, "salt": true, "t": true, "mono": true, "boot": true}); err != nil {
		return "", err
	}
	return b.String(), nil
}

// flatten writes one value as path=value, in the order of the record.
func flatten(b *strings.Builder, d *json.Decoder, path string, skip map[string]bool) error {
	token, err := d.Token()
	if err != nil {
		return err
	}
	switch v := token.(type) {
	case json.Delim:
		for i := 0; d.More(); i++ {
			next := path + "[" + strconv.Itoa(i) + "]"
			into := b
			if v == '{' {
				name, err := d.Token()
				if err != nil {
					return err
				}
				next = strings.TrimPrefix(path+"."+name.(string), ".")
				if skip[next] {
					into = &strings.Builder{}
				}
			}
			if err := flatten(into, d, next, skip); err != nil {
				return err
			}
		}
		_, err := d.Token()
		return err
	case string:
		if v != "" {
			fmt.Fprintf(b, " %s=%s", path, Safe(v))
		}
	default:
		fmt.Fprintf(b, " %s=%v", path, v)
	}
	return nil
}

// Safe quotes text unless it is of letters, digits and marks that mean nothing to a terminal.
func Safe(text string) string {
	plain := text != "" && !strings.ContainsFunc(text, func(r rune) bool {
		return r > unicode.MaxASCII || !unicode.IsLetter(r) && !unicode.IsDigit(r) && !strings.ContainsRune("-._:/+@#", r)
	})
	if plain {
		return text
	}
	// Quote leaves letters as they are, and escapes what is not printable: controls, and what
	// sets the direction of text.
	return strconv.Quote(text)
}

// Mentions tells whether a record has a pseudonym in any of its fields.
func Mentions(r record.Record, pseudonym string) (bool, error) {
	line, err := record.Encode(r)
	if err != nil {
		return false, err
	}
	return bytes.Contains(line, []byte(`"`+pseudonym+`"`)), nil
}
