package report

import (
	"fmt"
	"slices"
	"strconv"
	"time"

	"github.com/meshvakt/meshvakt/internal/evidence/verify"
)

// Units of the drawing. What was not observed is drawn at least minimum wide.
const (
	barWidth = 480.0
	minimum  = 4.0
)

// bar is a rectangle of a timeline.
type bar struct {
	X, W, Y, H string
	Class      string
	Title      string
}

// tick is a line of the axis, with a label where it is a major one. Anchor is that of the label.
type tick struct {
	X      string
	Major  bool
	Label  string
	LabelX string
	Anchor string
}

// scale turns times into units of the drawing.
type scale struct{ from, to time.Time }

func (s scale) x(t time.Time) float64 {
	whole := s.to.Sub(s.from)
	if whole <= 0 {
		return 0
	}
	return min(max(float64(t.Sub(s.from))/float64(whole), 0), 1) * barWidth
}

func units(x float64) string { return strconv.FormatFloat(x, 'f', 2, 64) }

// class of CSS is that of a grade.
func class(g verify.Grade) string {
	switch g {
	case verify.Observed:
		return "observed"
	case verify.ObservedByAudit:
		return "byAudit"
	case verify.Inferred:
		return "inferred"
	case unguarded:
		return "unguarded"
	case verify.Excepted:
		return "excepted"
	case verify.Violated:
		return "violated"
	}
	return "unknown"
}

// bars are in the order of drawing: the gravest last, and so on top.
func (s scale) bars(l language, intervals []verify.Interval) []bar {
	sorted := slices.Clone(intervals)
	slices.SortStableFunc(sorted, func(a, b verify.Interval) int {
		return slices.Index(shownGrades(), a.Grade) - slices.Index(shownGrades(), b.Grade)
	})
	var list []bar
	for _, in := range sorted {
		x, end := s.x(in.From), s.x(in.To)
		if w := end - x; in.Grade != verify.Observed && in.Grade != unguarded && w < minimum {
			x = min(max(x-(minimum-w)/2, 0), barWidth-minimum)
			end = x + minimum
		}
		// What was not observed stands out above and below, to be seen without colour too.
		y, h := "0", "18"
		if in.Grade == verify.Observed || in.Grade == unguarded {
			y, h = "3", "12"
		}
		list = append(list, bar{units(x), units(end - x), y, h, "g-" + class(in.Grade),
			fmt.Sprintf("%s: %s – %s", l.word("grade", string(in.Grade)), l.instant(in.From), l.instant(in.To))})
	}
	return list
}

// ticks are months with Mondays between them, or days, or hours, by the length of the period.
func (s scale) ticks(l language) []tick {
	const day = 24 * time.Hour
	whole := s.to.Sub(s.from)
	from := s.from.UTC()
	midnight := time.Date(from.Year(), from.Month(), from.Day(), 0, 0, 0, 0, time.UTC)
	var list []tick
	add := func(at time.Time, major bool, label string) {
		if !at.Before(s.from) && at.Before(s.to) {
			list = append(list, s.tick(at, major, label))
		}
	}
	switch {
	case whole <= 0:
	case whole <= 2*day:
		for at := midnight; at.Before(s.to); at = at.Add(time.Hour) {
			label := ""
			if at.Hour()%6 == 0 {
				label = at.Format("15:04")
			}
			add(at, label != "", label)
		}
	case whole <= 31*day:
		for at := midnight; at.Before(s.to); at = at.AddDate(0, 0, 1) {
			label := ""
			if at.Weekday() == time.Monday || whole <= 8*day {
				label = strconv.Itoa(at.Day()) + " " + l.monthName(at)
			}
			add(at, label != "", label)
		}
	default:
		every := 1 + int(whole/(400*day))*3
		for at := midnight.AddDate(0, 0, 1-midnight.Day()); at.Before(s.to); at = at.AddDate(0, 1, 0) {
			label := ""
			if (int(at.Month())-1)%every == 0 {
				label = l.month(at)
				if whole > 200*day {
					label = fmt.Sprintf("%s %02d", l.monthName(at), at.Year()%100)
				}
			}
			add(at, true, label)
		}
		for at := midnight; at.Before(s.to) && whole <= 200*day; at = at.AddDate(0, 0, 1) {
			if at.Weekday() == time.Monday && at.Day() != 1 {
				add(at, false, "")
			}
		}
	}
	return list
}

// tick keeps labels inside of the drawing.
func (s scale) tick(at time.Time, major bool, label string) tick {
	x := s.x(at)
	t := tick{X: units(x), Major: major, Label: label, LabelX: units(x + 2), Anchor: "start"}
	if x > barWidth-50 {
		t.LabelX, t.Anchor = units(x-2), "end"
	}
	return t
}
