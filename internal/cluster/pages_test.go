package cluster

import (
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"slices"
	"testing"

	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/meshvakt/meshvakt/internal/mesh"
	"github.com/meshvakt/meshvakt/internal/objects"
)

// A client decodes an answer over what the list held before: what an object of the
// second page leaves out must not come from the first.
func TestPagesDoNotMix(t *testing.T) {
	const item = `{"apiVersion":"security.istio.io/v1","kind":"PeerAuthentication","metadata":{"namespace":%q,"name":"default"},"spec":%s}`
	pages := map[string]string{
		"":  `{"continue":"2"},"items":[` + fmt.Sprintf(item, "a", `{"selector":{"matchLabels":{"app":"a"}},"mtls":{"mode":"DISABLE"}}`) + `]`,
		"2": `{},"items":[` + fmt.Sprintf(item, "b", `{"selector":{"matchLabels":{"version":"b"}}}`) + `]`,
	}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		fmt.Fprintf(w, `{"apiVersion":"security.istio.io/v1","kind":"PeerAuthenticationList","metadata":%s}`, pages[r.URL.Query().Get("continue")])
	}))
	t.Cleanup(server.Close)
	scheme := runtime.NewScheme()
	if err := AddToScheme(scheme); err != nil {
		t.Fatal(err)
	}
	mapper := meta.NewDefaultRESTMapper(nil)
	mapper.Add(objects.PeerAuthenticationKind(), meta.RESTScopeNamespace)
	live, err := client.New(&rest.Config{Host: server.URL}, client.Options{Scheme: scheme, Mapper: mapper})
	if err != nil {
		t.Fatal(err)
	}
	l := &liveRead{source: New(Config{Live: live, Log: slog.New(slog.DiscardHandler)})}
	var read []*mesh.PeerAuthentication
	list := &objects.PeerAuthenticationList{}
	if err := l.pages(t.Context(), list, func() error {
		for i := range list.Items {
			read = append(read, l.policy(&list.Items[i]))
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, p := range read {
		got = append(got, fmt.Sprintf("%s %v %v", p.Namespace, p.Mode, p.Selector))
	}
	if want := []string{"a DISABLE map[app:a]", "b UNSET map[version:b]"}; !slices.Equal(got, want) {
		t.Errorf("read %q; want %q", got, want)
	}
}
