package report

import (
	"embed"
	"encoding/json"
	"fmt"
	"path"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"
)

//go:embed catalogue/*.json
var embeddedCatalogues embed.FS

// Languages are those that a page can be had in, by their tags of BCP 47.
func Languages() []string { return []string{"en", "nb"} }

// language is the texts of one, and how it writes numbers and dates.
type language map[string]string

func newLanguage(tag string) (language, error) {
	if !slices.Contains(Languages(), tag) {
		return nil, fmt.Errorf("language %q; must be one of %s", tag, strings.Join(Languages(), ", "))
	}
	text, err := embeddedCatalogues.ReadFile(path.Join("catalogue", tag+".json"))
	if err != nil {
		return nil, fmt.Errorf("read the texts of %s: %w", tag, err)
	}
	var l language
	if err := json.Unmarshal(text, &l); err != nil {
		return nil, fmt.Errorf("read the texts of %s: %w", tag, err)
	}
	return l, nil
}

// text is the one of a key, or the key itself: a word that came in with the records and is newer than the catalogue
// is better shown as it is than not at all.
func (l language) text(key string, args ...any) string {
	text, known := l[key]
	if !known {
		return key
	}
	if len(args) == 0 {
		return strings.ReplaceAll(text, "%%", "%")
	}
	return fmt.Sprintf(text, args...)
}

// word is the text of a word of the records, or the word.
func (l language) word(group, word string) string {
	if text, known := l[group+"."+word]; known {
		return text
	}
	return shown(word, 64)
}

func (l language) number(n uint64) string {
	digits := strconv.FormatUint(n, 10)
	var b strings.Builder
	for i, d := range digits {
		if i > 0 && (len(digits)-i)%3 == 0 {
			b.WriteString(l["thousands"])
		}
		b.WriteRune(d)
	}
	return b.String()
}

func (l language) int(n int) string { return l.number(uint64(max(n, 0))) }

// percent takes hundredths of a percent.
func (l language) percent(hundredths int64) string {
	if hundredths == 10000 {
		return l.text("percent", "100")
	}
	return l.text("percent", fmt.Sprintf("%d%s%02d", hundredths/100, l["decimal"], hundredths%100))
}

func (l language) date(t time.Time) string { return t.UTC().Format(l["date"]) }

// instant has milliseconds where there are any, rounded down.
func (l language) instant(t time.Time) string {
	if t.IsZero() {
		return "–"
	}
	t = t.UTC()
	text := t.Format(l["date"] + " 15:04:05")
	if ms := t.Nanosecond() / int(time.Millisecond); ms > 0 {
		text += fmt.Sprintf("%s%03d", l["decimal"], ms)
	}
	return text
}

// month names one, with its year.
func (l language) month(t time.Time) string {
	return l.monthName(t) + " " + strconv.Itoa(t.UTC().Year())
}

func (l language) monthName(t time.Time) string {
	return strings.Fields(l["months"])[t.UTC().Month()-1]
}

// rounding is in which direction a duration is cut to what is shown of it.
type rounding bool

const (
	down rounding = false
	up   rounding = true
)

// duration has seconds from a minute on, and milliseconds below. The units are the international ones, which are the same in all
// languages here.
func (l language) duration(d time.Duration, r rounding) string {
	unit := time.Second
	if d < time.Minute {
		unit = time.Millisecond
	}
	cut := d.Truncate(unit)
	if r == up && cut < d {
		cut += unit
	}
	if cut <= 0 {
		return "0 s"
	}
	days, rest := cut/(24*time.Hour), cut%(24*time.Hour)
	hours, minutes, seconds := rest/time.Hour, rest%time.Hour/time.Minute, rest%time.Minute/time.Second
	var parts []string
	for _, p := range []struct {
		n    time.Duration
		unit string
	}{{days, "d"}, {hours, "h"}, {minutes, "min"}} {
		if p.n > 0 {
			parts = append(parts, l.number(uint64(p.n))+"\u00a0"+p.unit)
		}
	}
	if ms := cut % time.Second / time.Millisecond; ms > 0 {
		parts = append(parts, fmt.Sprintf("%d%s%03d\u00a0s", seconds, l["decimal"], ms))
	} else if seconds > 0 {
		parts = append(parts, fmt.Sprintf("%d\u00a0s", seconds))
	}
	return strings.Join(parts, " ")
}

// prose is text that people have written, of a bounded length and with nothing in it that the page would obey instead
// of showing: it may have been written to deceive whoever reads the report.
func (l language) prose(text string) string {
	const most = 400
	n := utf8.RuneCountInString(text)
	if n <= most {
		return shown(text, most)
	}
	return shown(text, most) + l.text("moreCharacters", l.int(n))
}

// shown makes controls of terminals and of writing direction visible, and ends after as many characters.
func shown(text string, most int) string {
	var b strings.Builder
	for _, r := range text {
		if most--; most < 0 {
			break
		}
		switch {
		case r == utf8.RuneError:
			b.WriteString(`\ufffd`)
		case r > 0xffff && !unicode.IsPrint(r):
			fmt.Fprintf(&b, `\U%08x`, r)
		// IsPrint has no spaces but U+0020, and none of the formatting characters, of which some reorder what follows.
		case !unicode.IsPrint(r) && r != '\u00a0':
			fmt.Fprintf(&b, `\u%04x`, r)
		default:
			b.WriteRune(r)
		}
	}
	return b.String()
}

// subject is a pseudonym, or the name of a service account.
func (l language) subject(by string) string {
	if by == "" {
		return l.text("unknownPerson")
	}
	return shown(by, 400)
}
