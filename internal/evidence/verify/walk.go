package verify

import (
	"context"

	"github.com/meshvakt/meshvakt/internal/evidence/record"
)

// Walk calls each with all records of all logs, in the order of the logs, as they are verified.
// What is wrong with a log is known only at its end, so it is returned when all is told: of a
// log with a problem nothing that was told may be believed.
func Walk(ctx context.Context, sources []*Source, trust *Trust, each func(origin, pseudonyms string, r record.Record) error) (*Result, error) {
	r := &reading{trust: trust, announce: map[string][]string{}, trusted: map[string]string{}}
	list, err := r.openAll(ctx, sources)
	if err != nil {
		return nil, err
	}
	out := &Result{}
	var before *tail
	var failed error
	for _, o := range list {
		log, end, err := r.verify(ctx, o, before, func(log *Log, rec record.Record) error {
			if failed == nil {
				failed = each(log.Origin, log.Pseudonyms, rec)
			}
			return nil
		})
		if err != nil {
			return nil, err
		}
		if failed != nil {
			return nil, failed
		}
		out.Logs = append(out.Logs, *log)
		before = end
	}
	out.Problems, out.Newer = r.problems, r.newer
	return out, nil
}
