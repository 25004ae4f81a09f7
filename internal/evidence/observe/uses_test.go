package observe

import (
	"fmt"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"k8s.io/apimachinery/pkg/types"

	"github.com/meshvakt/meshvakt/internal/evidence/record"
)

// TestStandingUses scans a namespace in which pods stand by an exception, and reads what the log is told of that.
func TestStandingUses(t *testing.T) {
	exception := changed(approve, 2)
	inCluster(t, func(t *testing.T, s *setting) {
		s.log.open("2026q3")
		s.start()
		s.pass(3 * time.Second)
		scan := func(n int) {
			s.observer.Relied("prod", time.Now(), map[types.UID]int{exception.UID: n})
			s.pass(2 * time.Second)
		}
		told := func() []*record.ExceptionUsed { return of[*record.ExceptionUsed](s.log.told()) }
		check := func(what string, want ...uint64) {
			t.Helper()
			var got []uint64
			for _, u := range told() {
				got = append(got, u.N)
			}
			if fmt.Sprint(got) != fmt.Sprint(want) {
				t.Fatalf("%s: told %v; must be %v", what, got, want)
			}
		}
		s.observer.Relied("prod", time.Now(), nil)
		s.pass(2 * time.Second)
		check("nothing stands")
		first := time.Now()
		scan(2)
		check("found", 2)
		if u := told()[0]; u.How != "standing" || u.Object.UID != string(exception.UID) || u.Object.Namespace != "prod" || !u.From.Equal(first) || !u.To.Equal(first) {
			t.Errorf("told %+v", u)
		}
		scan(2)
		scan(5)
		scan(3)
		check("changed within the minute", 2)
		s.pass(time.Minute)
		check("the most of the minute", 2, 5)
		if u := told()[1]; !u.From.Equal(first) || !u.To.Equal(first.Add(6*time.Second)) {
			t.Errorf("told %s to %s", u.From, u.To)
		}
		for range 6 {
			s.pass(10 * time.Minute)
			scan(3)
		}
		check("still so after an hour", 2, 5, 3)
		s.observer.Relied("prod", time.Now(), nil) // no more
		s.pass(2 * time.Hour)
		check("gone, and until when it was seen", 2, 5, 3, 3)
		if n := len(s.observer.uses.found); n != 0 {
			t.Errorf("%d uses are remembered; must be none", n)
		}
		scan(1)
		check("again", 2, 5, 3, 3, 1)

		s.log.open("2026q4")
		s.pass(3 * time.Second)
		check("a new shard is told anew", 2, 5, 3, 3, 1, 1)

		s.log.breaks(unix.EROFS)
		scan(7)
		s.pass(2 * time.Minute)
		s.log.breaks(nil)
		s.pass(2 * time.Second)
		check("told when it can be", 2, 5, 3, 3, 1, 1, 7)

		s.remove(exception)
		s.pass(2 * time.Second)
		scan(8)
		s.observer.Relied("prod", time.Now(), nil)
		s.pass(2 * time.Minute)
		check("an exception that was deleted meanwhile", 2, 5, 3, 3, 1, 1, 7, 8)
	}, defaultGuard(), namespaceNamed("prod"), meshConfig(""), exception)
}

func TestStandingUseOfWhatIsNotKnown(t *testing.T) {
	inCluster(t, func(t *testing.T, s *setting) {
		s.log.open("2026q3")
		s.start()
		s.pass(3 * time.Second)
		s.observer.Relied("prod", time.Now(), map[types.UID]int{"u-other": 1})
		s.pass(2 * time.Second)
		s.observer.Relied("prod", time.Now(), nil)
		s.pass(2 * time.Second)
		if list := of[*record.ExceptionUsed](s.log.told()); len(list) > 0 || len(s.observer.uses.found) > 0 {
			t.Errorf("told %+v, remembered %d; must be nothing", list, len(s.observer.uses.found))
		}
	}, defaultGuard(), namespaceNamed("prod"), meshConfig(""))
}
