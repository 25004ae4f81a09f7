//go:build unix

package cluster

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"os/exec"
	"runtime/debug"
	"runtime/metrics"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	admissionv1 "k8s.io/api/admission/v1"
	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	clientgoscheme "k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/meshvakt/meshvakt/api/v1alpha1"
	"github.com/meshvakt/meshvakt/internal/objects"
	"github.com/meshvakt/meshvakt/policies"
)

// The API server of the tests of memory is a process of its own, this binary run
// once more, so that what it takes is not counted.
const podServerEnv = "MESHVAKT_POD_SERVER"

// podsInNamespace run in each namespace of that server, in controllers of a hundred.
const podsInNamespace = 5000

func TestMain(m *testing.M) {
	if os.Getenv(podServerEnv) == "" {
		os.Exit(m.Run())
	}
	if err := servePods(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// servePods serves until standard input ends, and says where: lists of pods as an
// API server answers them, and of everything else nothing.
func servePods() error {
	pods, err := injectedPods()
	if err != nil {
		return err
	}
	var mu sync.Mutex
	pages := map[string]*httptest.ResponseRecorder{} // by query
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !strings.HasSuffix(r.URL.Path, "/pods") {
			answerOthers(w, r)
			return
		}
		mu.Lock()
		defer mu.Unlock()
		page := pages[r.URL.RawQuery]
		if page == nil {
			page = httptest.NewRecorder()
			answerTyped(page, r, podPage(pods, r.URL.Query()))
			pages[r.URL.RawQuery] = page
		}
		w.Header().Set("Content-Type", page.Header().Get("Content-Type"))
		_, _ = w.Write(page.Body.Bytes()) // a client that is gone shows in the test
	}))
	defer server.Close()
	fmt.Println(server.URL)
	_, err = io.Copy(io.Discard, os.Stdin)
	return err
}

func podPage(pods []corev1.Pod, query url.Values) *corev1.PodList {
	limit, _ := strconv.Atoi(query.Get("limit"))
	first, _ := strconv.Atoi(query.Get("continue"))
	list := &corev1.PodList{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "PodList"}}
	for i := first; i < min(first+limit, podsInNamespace); i++ {
		list.Items = append(list.Items, *runningPod(pods, i))
	}
	if first+limit < podsInNamespace {
		list.Continue = strconv.Itoa(first + limit)
	}
	return list
}

// runningPod is the nth pod: one of the recorded ones, with a name, a token and an
// address of its own.
func runningPod(recorded []corev1.Pod, n int) *corev1.Pod {
	pod := recorded[n/100%len(recorded)].DeepCopy()
	pod.Name = fmt.Sprintf("%s%05d", pod.GenerateName, n)
	pod.UID = types.UID(fmt.Sprintf("0f8a3f9c-4d1e-4c0e-9c57-%012d", n))
	pod.Spec.NodeName = fmt.Sprintf("node-%d.eu-north-1.compute.internal", n%200)
	pod.Status = corev1.PodStatus{Phase: corev1.PodRunning, PodIP: fmt.Sprintf("10.1.%d.%d", n/250, n%250)}
	text := fmt.Sprintf("kube-api-access-%05d", n)
	for i := range pod.Spec.Volumes {
		if strings.HasPrefix(pod.Spec.Volumes[i].Name, "kube-api-access-") {
			pod.Spec.Volumes[i].Name = text
		}
	}
	for _, containers := range [][]corev1.Container{pod.Spec.InitContainers, pod.Spec.Containers} {
		for i := range containers {
			for j := range containers[i].VolumeMounts {
				if m := &containers[i].VolumeMounts[j]; strings.HasPrefix(m.Name, "kube-api-access-") {
					m.Name = text
				}
			}
			pod.Status.ContainerStatuses = append(pod.Status.ContainerStatuses, corev1.ContainerStatus{Name: containers[i].Name, Image: containers[i].Image, Ready: true})
		}
	}
	return pod
}

func answerOthers(w http.ResponseWriter, r *http.Request) {
	var kind, version string
	name := r.URL.Path[strings.LastIndex(r.URL.Path, "/")+1:]
	switch {
	case strings.HasSuffix(r.URL.Path, "/meshguards"):
		kind, version = "MeshGuardList", "meshvakt.io/v1alpha1"
	case strings.HasSuffix(r.URL.Path, "/guardexceptions"):
		kind, version = "GuardExceptionList", "meshvakt.io/v1alpha1"
	case strings.HasSuffix(r.URL.Path, "/mutatingwebhookconfigurations"):
		kind, version = "MutatingWebhookConfigurationList", "admissionregistration.k8s.io/v1"
	case strings.HasSuffix(r.URL.Path, "/peerauthentications"):
		kind, version = "PeerAuthenticationList", "security.istio.io/v1"
	case strings.HasPrefix(r.URL.Path, "/api/v1/namespaces/") && !strings.Contains(r.URL.Path, "/configmaps/"):
		w.Header().Set("Content-Type", "application/json")
		fmt.Fprintf(w, `{"apiVersion":"meta.k8s.io/v1","kind":"PartialObjectMetadata","metadata":{"name":%q,"resourceVersion":"1"}}`, name)
		return
	default:
		http.Error(w, "not found", http.StatusNotFound)
		return
	}
	items := ""
	if kind == "MeshGuardList" {
		items = `{"apiVersion":"meshvakt.io/v1alpha1","kind":"MeshGuard","metadata":{"name":"default"},"spec":{"namespaceSelector":{"matchLabels":{"meshvakt.io/guarded":"true"}},"strictMTLS":{},"meshMembership":{"validationActions":["Deny"]}}}`
	}
	w.Header().Set("Content-Type", "application/json")
	fmt.Fprintf(w, `{"apiVersion":%q,"kind":%q,"metadata":{"resourceVersion":"1"},"items":[%s]}`, version, kind, items)
}

// answerTyped encodes in what the client likes best, as the API server does.
func answerTyped(w http.ResponseWriter, r *http.Request, o runtime.Object) {
	accept, _, _ := strings.Cut(r.Header.Get("Accept"), ",")
	info, ok := runtime.SerializerInfoForMediaType(clientgoscheme.Codecs.SupportedMediaTypes(), accept)
	if !ok {
		http.Error(w, "not acceptable", http.StatusNotAcceptable)
		return
	}
	w.Header().Set("Content-Type", accept)
	_ = info.Serializer.Encode(o, w) // a client that is gone shows in the test
}

// injectedPods are the recorded pods.
func injectedPods() ([]corev1.Pod, error) {
	reviews, err := readPodReviews()
	if err != nil {
		return nil, err
	}
	var pods []corev1.Pod
	for _, line := range reviews {
		var review admissionv1.AdmissionReview
		if err := json.Unmarshal(line, &review); err != nil {
			return nil, err
		}
		var pod corev1.Pod
		if err := json.Unmarshal(review.Request.Object.Raw, &pod); err != nil {
			return nil, err
		}
		pods = append(pods, pod)
	}
	return pods, nil
}

// overHTTP is a Source that reads from a server of pods.
func overHTTP(tb testing.TB) *Source {
	tb.Helper()
	self, err := os.Executable()
	if err != nil {
		tb.Fatal(err)
	}
	cmd := exec.Command(self)
	cmd.Env, cmd.Stderr = append(os.Environ(), podServerEnv+"=1"), os.Stderr
	stdin, err := cmd.StdinPipe()
	if err != nil {
		tb.Fatal(err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		tb.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		stdin.Close()
		_ = cmd.Wait()
	})
	url, err := bufio.NewReader(stdout).ReadString('\n')
	if err != nil {
		tb.Fatal(err)
	}
	scheme := runtime.NewScheme()
	if err := AddToScheme(scheme); err != nil {
		tb.Fatal(err)
	}
	mapper := meta.NewDefaultRESTMapper(nil)
	for _, kind := range []string{"Pod", "ConfigMap"} {
		mapper.Add(corev1.SchemeGroupVersion.WithKind(kind), meta.RESTScopeNamespace)
	}
	mapper.Add(objects.PeerAuthenticationKind(), meta.RESTScopeNamespace)
	mapper.Add(v1alpha1.GroupVersion().WithKind("GuardException"), meta.RESTScopeNamespace)
	mapper.Add(corev1.SchemeGroupVersion.WithKind("Namespace"), meta.RESTScopeRoot)
	mapper.Add(v1alpha1.GroupVersion().WithKind("MeshGuard"), meta.RESTScopeRoot)
	mapper.Add(admissionregistrationv1.SchemeGroupVersion.WithKind("MutatingWebhookConfiguration"), meta.RESTScopeRoot)
	live, err := client.New(&rest.Config{Host: strings.TrimSpace(url), QPS: 1000, Burst: 1000}, client.Options{Scheme: scheme, Mapper: mapper})
	if err != nil {
		tb.Fatal(err)
	}
	s := New(Config{Live: live, IstioNamespace: "istio-system", Log: slog.New(slog.DiscardHandler)})
	s.synced.Store(true)
	return s
}

// comesUnderGuard judges a namespace that gets the label of the guard.
func comesUnderGuard(ctx context.Context, s *Source, name string) (policies.Decision, error) {
	labels := guardedLabels()
	labels["istio-injection"] = "enabled"
	r := about("Namespace", "", name)
	r.Operation, r.Object, r.OldObject = admissionv1.Update, storedNamespace(name, labels, "2"), storedNamespace(name, nil, "1")
	var err error
	if r.Cluster, err = s.ReadLive(ctx, r); err != nil {
		return policies.Decision{}, err
	}
	return policies.Evaluate(policies.All(), r)
}

// TestMemoryOfManyPods: namespaces of 5,000 pods with sidecars come under a guard,
// more at the same time than may be read at the same time. Decoded, their pods would
// take 100 MiB each.
func TestMemoryOfManyPods(t *testing.T) {
	const atOnce, mostMiB = heavyReads + 1, 20
	s := overHTTP(t)
	done := make(chan struct{})
	most := make(chan uint64)
	go func() { most <- mostHeap(done) }()
	start := time.Now()
	var requests sync.WaitGroup
	for i := range atOnce {
		requests.Go(func() {
			ctx, answered := context.WithTimeout(t.Context(), 10*time.Minute)
			defer answered()
			d, err := comesUnderGuard(ctx, s, fmt.Sprintf("prod-%d", i))
			if err != nil {
				t.Error(err)
			}
			for _, f := range d.Findings {
				if strings.HasPrefix(f.Message, fmt.Sprintf("%d running pods", podsInNamespace)) {
					return
				}
			}
			t.Errorf("pods that are not in the mesh are not found: %+v", d.Findings)
		})
	}
	requests.Wait()
	close(done)
	heap := <-most >> 20
	t.Logf("%d namespaces of %d pods took %s and held %d MiB of heap", atOnce, podsInNamespace, time.Since(start).Round(time.Millisecond), heap)
	if heap > mostMiB {
		t.Errorf("%d MiB of heap are held; want at most %d", heap, mostMiB)
	}
}

// mostHeap watches what of the heap is held, as collections of garbage find it, until done. How much garbage there is besides
// depends on how soon they get their turn.
func mostHeap(done <-chan struct{}) (most uint64) {
	debug.FreeOSMemory()
	sample := []metrics.Sample{{Name: "/gc/heap/live:bytes"}}
	for tick := time.NewTicker(time.Millisecond); ; {
		metrics.Read(sample)
		most = max(most, sample[0].Value.Uint64())
		select {
		case <-tick.C:
		case <-done:
			return most
		}
	}
}

// Who waits for others that read much does so until nobody waits for the answer.
func TestLease(t *testing.T) {
	s := New(Config{Log: slog.New(slog.DiscardHandler)})
	var ends []context.CancelFunc
	for range heavyReads {
		ctx, cancel := context.WithCancel(t.Context())
		ends = append(ends, cancel)
		if err := s.lease(ctx); err != nil {
			t.Fatal(err)
		}
	}
	late, cancel := context.WithCancelCause(t.Context())
	answered := errors.New("answered")
	cancel(answered)
	if err := s.lease(late); !errors.Is(err, answered) {
		t.Errorf("one too many: %v", err)
	}
	waiting := make(chan error)
	go func() { waiting <- s.lease(t.Context()) }()
	ends[0]()
	if err := <-waiting; err != nil {
		t.Errorf("the next: %v", err)
	}
	for _, end := range ends {
		end()
	}
}

// Pods that have nothing in common are held up to a bound, and then are an error.
func TestPackedAtMost(t *testing.T) {
	p, err := newPodPacker()
	if err != nil {
		t.Fatal(err)
	}
	noise := make([]byte, 64<<10)
	state := uint32(1)
	for n := 1; ; n++ {
		for i := range noise {
			state = state*1664525 + 1013904223
			noise[i] = byte(state>>24)%64 + ' '
		}
		err := p.add(&corev1.Pod{ObjectMeta: metav1.ObjectMeta{Annotations: map[string]string{"a": string(noise)}}})
		if err != nil {
			if held := p.out.Len(); held > packedAtMost+2*len(noise) || n < packedAtMost/len(noise) {
				t.Errorf("%d bytes held of %d pods", held, n)
			}
			return
		}
		if n > 4*packedAtMost/len(noise) {
			t.Fatal("no bound")
		}
	}
}
