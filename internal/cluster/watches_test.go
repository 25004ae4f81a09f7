package cluster

import (
	"errors"
	"maps"
	"strings"
	"testing"
	"time"

	toolscache "k8s.io/client-go/tools/cache"
	"sigs.k8s.io/controller-runtime/pkg/cache"

	"github.com/meshvakt/meshvakt/internal/objects"
)

// informerAt is an informer whose watch has reached a version, and what it holds.
type informerAt struct {
	cache.Informer
	version string
	store   toolscache.Indexer
}

func (i *informerAt) LastSyncResourceVersion() string { return i.version }

func (i *informerAt) GetIndexer() toolscache.Indexer { return i.store }

// holding is an informer that holds these policies, and knows of all changes up to a version.
func holding(tb testing.TB, version string, policies ...*objects.PeerAuthentication) *informerAt {
	tb.Helper()
	store := toolscache.NewIndexer(toolscache.MetaNamespaceKeyFunc, toolscache.Indexers{toolscache.NamespaceIndex: toolscache.MetaNamespaceIndexFunc})
	for _, p := range policies {
		if err := store.Add(p); err != nil {
			tb.Fatal(err)
		}
	}
	store.Bookmark(version)
	return &informerAt{version: version, store: store}
}

func TestWatches(t *testing.T) {
	begin := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	broken := errors.New("connection refused")
	type play struct {
		*Source
		pods, guards *informerAt
		now          time.Time
	}
	for name, c := range map[string]struct {
		play func(*play)
		want string // part of the error; empty: healthy
		ages map[string]time.Duration
	}{
		"a quiet watch is healthy for ever": {
			func(p *play) { p.now = begin.Add(24 * time.Hour) }, "",
			map[string]time.Duration{"MeshGuard": 0, "PeerAuthentication": 0},
		},
		"a broken watch is borne for a while": {
			func(p *play) { p.watches.failed("MeshGuard", broken, begin); p.now = begin.Add(MaxStaleness) }, "",
			map[string]time.Duration{"MeshGuard": MaxStaleness, "PeerAuthentication": 0},
		},
		"a watch broken for too long is told by name": {
			func(p *play) {
				p.watches.failed("MeshGuard", broken, begin)
				p.now = begin.Add(MaxStaleness + time.Second)
			},
			"watch of MeshGuard broken for 31s: connection refused",
			map[string]time.Duration{"MeshGuard": 31 * time.Second, "PeerAuthentication": 0},
		},
		"it counts from the first error, and the last one is told": {
			func(p *play) {
				p.watches.failed("MeshGuard", broken, begin)
				p.watches.failed("MeshGuard", errors.New("timeout"), begin.Add(30*time.Second))
				p.now = begin.Add(31 * time.Second)
			},
			"31s: timeout",
			map[string]time.Duration{"MeshGuard": 31 * time.Second, "PeerAuthentication": 0},
		},
		"progress ends it": {
			func(p *play) {
				p.watches.failed("MeshGuard", broken, begin)
				p.guards.version = "2"
				p.now = begin.Add(time.Hour)
			}, "",
			map[string]time.Duration{"MeshGuard": 0, "PeerAuthentication": 0},
		},
		"a watch that cannot be begun is told, though informers say nothing of it": {
			func(p *play) {
				p.watches.reached("MeshGuard", broken, begin)
				p.watches.reached("MeshGuard", errors.New("no route"), begin.Add(30*time.Second))
				p.now = begin.Add(31 * time.Second)
			},
			"watch of MeshGuard broken for 31s: no route",
			map[string]time.Duration{"MeshGuard": 31 * time.Second, "PeerAuthentication": 0},
		},
		"and is well once one has begun, quiet as it may be": {
			func(p *play) {
				p.watches.reached("MeshGuard", broken, begin)
				p.watches.reached("MeshGuard", nil, begin.Add(time.Minute))
				p.now = begin.Add(time.Hour)
			}, "",
			map[string]time.Duration{"MeshGuard": 0, "PeerAuthentication": 0},
		},
		"one that was begun and has failed otherwise is not": {
			func(p *play) {
				p.watches.failed("MeshGuard", errors.New("expired"), begin)
				p.watches.reached("MeshGuard", broken, begin.Add(time.Second))
				p.watches.reached("MeshGuard", nil, begin.Add(2*time.Second))
				p.now = begin.Add(time.Minute)
			}, "expired",
			map[string]time.Duration{"MeshGuard": time.Minute, "PeerAuthentication": 0},
		},
		"a watch that lasts ends it": {
			func(p *play) {
				p.watches.failed("MeshGuard", broken, begin)
				p.watches.note("MeshGuard", func(k *watch) { k.opened = begin.Add(time.Minute) })
				p.now = begin.Add(time.Minute + lasting)
			}, "",
			map[string]time.Duration{"MeshGuard": 0, "PeerAuthentication": 0},
		},
		"one that was open before, or has only just begun, does not": {
			func(p *play) {
				p.watches.note("MeshGuard", func(k *watch) { k.opened = begin })
				p.watches.failed("MeshGuard", broken, begin)
				p.watches.note("PeerAuthentication", func(k *watch) { k.opened = begin.Add(time.Minute) })
				p.watches.failed("PeerAuthentication", broken, begin)
				p.now = begin.Add(time.Minute + lasting - 1)
			}, "MeshGuard",
			map[string]time.Duration{"MeshGuard": time.Minute + lasting - 1, "PeerAuthentication": time.Minute + lasting - 1},
		},
		"progress of another watch does not": {
			func(p *play) {
				p.watches.failed("MeshGuard", broken, begin)
				p.pods.version = "2"
				p.now = begin.Add(time.Hour)
			}, "MeshGuard",
			map[string]time.Duration{"MeshGuard": time.Hour, "PeerAuthentication": 0},
		},
		"after progress it counts anew": {
			func(p *play) {
				p.watches.failed("MeshGuard", broken, begin)
				p.guards.version = "2"
				p.watches.check(begin)
				p.watches.failed("MeshGuard", broken, begin.Add(time.Minute))
				p.now = begin.Add(80 * time.Second)
			}, "",
			map[string]time.Duration{"MeshGuard": 20 * time.Second, "PeerAuthentication": 0},
		},
		"an unknown kind is passed over": {
			func(p *play) { p.watches.failed("Secret", broken, begin); p.now = begin.Add(time.Hour) }, "",
			map[string]time.Duration{"MeshGuard": 0, "PeerAuthentication": 0},
		},
		"all broken ones are told": {
			func(p *play) {
				p.watches.failed("PeerAuthentication", broken, begin)
				p.watches.failed("MeshGuard", broken, begin)
				p.now = begin.Add(time.Hour)
			}, "watch of MeshGuard broken for 1h0m0s: connection refused\nwatch of PeerAuthentication broken",
			map[string]time.Duration{"MeshGuard": time.Hour, "PeerAuthentication": time.Hour},
		},
		"adding the watch again keeps what is known": {
			func(p *play) {
				p.watches.failed("MeshGuard", broken, begin)
				p.watches.add("MeshGuard", &informerAt{version: "1"})
				p.now = begin.Add(time.Hour)
			}, "MeshGuard",
			map[string]time.Duration{"MeshGuard": time.Hour, "PeerAuthentication": 0},
		},
	} {
		t.Run(name, func(t *testing.T) {
			p := &play{New(Config{}), &informerAt{version: "1"}, &informerAt{version: "1"}, begin}
			p.watches.add("PeerAuthentication", p.pods)
			p.watches.add("MeshGuard", p.guards)
			if err := p.Ready(begin); !errors.Is(err, ErrNotSynced) {
				t.Errorf("before the caches are filled: %v", err)
			}
			p.synced.Store(true)
			c.play(p)
			err := p.Ready(p.now)
			if (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %v; want %q", err, c.want)
			}
			if ages := p.Ages(p.now); !maps.Equal(ages, c.ages) {
				t.Errorf("ages %v; want %v", ages, c.ages)
			}
		})
	}
}

func TestReflectorKind(t *testing.T) {
	for description, want := range map[string]string{
		"*v1.ConfigMap":                        "ConfigMap",
		"meshvakt.io/v1alpha1, Kind=MeshGuard": "MeshGuard",
		"*v1alpha1.MeshGuard":                  "MeshGuard",
		"*objects.PeerAuthentication":          "PeerAuthentication",
		"*v1.PartialObjectMetadata":            "Namespace",
		"/v1, Kind=Namespace":                  "Namespace",
		"*v1.Secret":                           "*v1.Secret",
		"":                                     "",
	} {
		if got := reflectorKind(description); got != want {
			t.Errorf("%q: %q; want %q", description, got, want)
		}
	}
}
