package e2e

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	eventsv1 "k8s.io/api/events/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/yaml"

	"github.com/meshvakt/meshvakt/api/v1alpha1"
	"github.com/meshvakt/meshvakt/test/controlplane"
)

// repairedWithin is what is promised.
const repairedWithin = 5 * time.Second

const ownObjects = "meshvakt-own-objects"

// The keys of that ConfigMap, and what a repair did, as the metric says.
const (
	keptKey, watchedKey = "kept.yaml", "watched.yaml"
	created, changed    = "created", "changed"
)

// keeping are the arguments by which the chart has Meshvakt keep its own objects.
func keeping(t testing.TB) []string {
	t.Helper()
	data := installed(t).Data
	digest := sha256.Sum256([]byte(data[keptKey] + "\n" + data[watchedKey]))
	return []string{"--own-objects", ownObjects, "--own-objects-digest", hex.EncodeToString(digest[:]), "--own-objects-field-manager", "controlplane"}
}

func installed(t testing.TB) *corev1.ConfigMap {
	t.Helper()
	var cm corev1.ConfigMap
	must(t, clientFor(t, controlplane.Admin).Get(t.Context(), client.ObjectKey{Namespace: ownNamespace, Name: ownObjects}, &cm))
	return &cm
}

// ownManifest are the objects under a key of the ConfigMap.
func ownManifest(t testing.TB, key string) []*unstructured.Unstructured {
	t.Helper()
	var list []*unstructured.Unstructured
	for _, doc := range strings.Split("\n"+installed(t).Data[key], "\n---\n") {
		o := &unstructured.Unstructured{}
		must(t, yaml.Unmarshal([]byte(doc), &o.Object))
		if len(o.Object) > 0 {
			list = append(list, o)
		}
	}
	return list
}

func live(t testing.TB, c client.Client, o client.Object) (*unstructured.Unstructured, error) {
	t.Helper()
	u := &unstructured.Unstructured{}
	u.SetGroupVersionKind(o.GetObjectKind().GroupVersionKind())
	return u, c.Get(t.Context(), client.ObjectKeyFromObject(o), u)
}

// content is what counts of an object.
func content(o *unstructured.Unstructured) string {
	c := o.DeepCopy().Object
	delete(c, "metadata")
	delete(c, "status")
	if spec, ok := c["spec"].(map[string]any); ok { // given anew to every Service
		delete(spec, "clusterIP")
		delete(spec, "clusterIPs")
	}
	text, err := json.Marshal(c)
	if err != nil {
		panic(err)
	}
	return string(text)
}

// repaired waits until an object is as it was, and returns how long that took.
func repaired(t testing.TB, was *unstructured.Unstructured, since time.Time) time.Duration {
	t.Helper()
	admin := clientFor(t, controlplane.Admin)
	eventually(t, repairedWithin, func() error {
		is, err := live(t, admin, was)
		switch {
		case err != nil:
			return err
		case is.GetDeletionTimestamp() != nil:
			return errors.New("it is being deleted")
		case content(is) != content(was):
			return fmt.Errorf("it is\n%s\nwant\n%s", content(is), content(was))
		}
		return nil
	})
	return time.Since(since)
}

func describe(o client.Object) string {
	return o.GetObjectKind().GroupVersionKind().Kind + " " + strings.TrimPrefix(o.GetNamespace()+"/"+o.GetName(), "/")
}

// told waits until a repair shows in the metric and as an Event.
func told(t testing.TB, r *replica, o client.Object, action string, before float64) {
	t.Helper()
	admin := clientFor(t, controlplane.Admin)
	kind := o.GetObjectKind().GroupVersionKind().Kind
	eventually(t, 5*time.Second, func() error {
		if now := r.metric(t.Context(), repairs(kind, action)); now <= before {
			return fmt.Errorf("%s is %v, as before", repairs(kind, action), now)
		}
		var list eventsv1.EventList
		if err := admin.List(t.Context(), &list); err != nil {
			return err
		}
		if !slices.ContainsFunc(list.Items, func(e eventsv1.Event) bool {
			return e.Reason == "OwnObjectRepaired" && e.Regarding.Kind == kind && e.Regarding.Name == o.GetName() && e.Regarding.Namespace == o.GetNamespace()
		}) {
			return fmt.Errorf("no Event about %s", describe(o))
		}
		return nil
	})
}

func repairs(kind string, action string) string {
	return fmt.Sprintf(`meshvakt_own_objects_repaired_total{action="%s",kind="%s"}`, action, kind)
}

// TestKeeper is an administrator, by mistake or on purpose, and somebody who took over
// their account: each of Meshvakt's own objects is deleted and changed.
func TestKeeper(t *testing.T) {
	ownPlane(t, controlplane.Options{Log: os.Stderr})
	guard(t, defaultGuard(v1alpha1.OnMissingReject))
	r := start(t, keeping(t)...)
	enforcing(t, "default")
	eventually(t, 10*time.Second, func() error { return asInstalled(t, r) })
	if n := r.metric(t.Context(), "meshvakt_own_objects_repaired_total"); n > 0 {
		t.Errorf("%v repairs of what nobody has touched", n)
	}
	for _, step := range []struct {
		name string
		do   func(*testing.T, *replica)
	}{
		{"deleted", keeperCreates},
		{"webhook configurations", keeperRegisters},
		{"changed", keeperChanges},
		{"another role bound", keeperBindsAnew},
		{"watched", keeperWatches},
		{"all rights lost", keeperIsPowerless},
		{"definition deleted", keeperRestoresGuards},
	} {
		t.Run(step.name, func(t *testing.T) {
			step.do(t, r)
			eventually(t, 15*time.Second, func() error { return asInstalled(t, r) })
		})
	}
}

func asInstalled(t testing.TB, r *replica) error {
	body, err := get(t.Context(), "http://"+r.operations+"/metrics")
	if err != nil {
		return err
	}
	for line := range strings.Lines(body) {
		if strings.HasPrefix(line, "meshvakt_own_objects_not_as_installed{") && !strings.HasSuffix(strings.TrimSpace(line), " 0") {
			return errors.New(line)
		}
	}
	return nil
}

func isDefinition(o client.Object) bool {
	return o.GetObjectKind().GroupVersionKind().Kind == "CustomResourceDefinition"
}

func keeperCreates(t *testing.T, r *replica) {
	admin := clientFor(t, controlplane.Admin)
	list := ownManifest(t, keptKey)
	cm := installed(t)
	cm.SetGroupVersionKind(corev1.SchemeGroupVersion.WithKind("ConfigMap"))
	own := &unstructured.Unstructured{Object: map[string]any{}}
	own.SetGroupVersionKind(cm.GroupVersionKind())
	own.SetNamespace(cm.Namespace)
	own.SetName(cm.Name)
	list = append(list, own)
	if len(list) < 18 {
		t.Fatalf("only %d objects are kept", len(list))
	}
	for _, o := range list {
		if isDefinition(o) {
			continue // see keeperRestoresGuards
		}
		was, err := live(t, admin, o)
		must(t, err)
		before := r.metric(t.Context(), repairs(o.GetKind(), created))
		since := time.Now()
		must(t, admin.Delete(t.Context(), was.DeepCopy()))
		took := repaired(t, was, since)
		t.Logf("%s deleted: there again after %s", describe(o), took.Round(time.Millisecond))
		told(t, r, o, created, before)
	}
}

func keeperRegisters(t *testing.T, r *replica) {
	admin := clientFor(t, controlplane.Admin)
	bound := v1alpha1.DefaultGuard()
	bound.Name, bound.Spec.NamespaceSelector.MatchLabels = "bound", map[string]string{"bound": "yes"}
	must(t, admin.Create(t.Context(), bound))
	enforcing(t, "bound") // the configurations are as they will be
	never := map[string]any{"matchLabels": map[string]any{"never": "there"}}
	for kind, c := range map[string]struct{ name, path string }{
		"ValidatingWebhookConfiguration":   {"meshvakt", "/webhooks/0/objectSelector"},
		"MutatingWebhookConfiguration":     {mutatingName, "/webhooks/0/objectSelector"},
		"ValidatingAdmissionPolicyBinding": {"meshvakt-bound", "/spec/matchResources/objectSelector"},
	} {
		o := &unstructured.Unstructured{}
		o.SetGroupVersionKind(schema.GroupVersionKind{Group: "admissionregistration.k8s.io", Version: "v1", Kind: kind})
		o.SetName(c.name)
		eventually(t, 10*time.Second, func() error {
			_, err := live(t, admin, o)
			return err
		})
		was, err := live(t, admin, o)
		must(t, err)
		before := r.metric(t.Context(), repairs(kind, created))
		since := time.Now()
		must(t, admin.Delete(t.Context(), was.DeepCopy()))
		t.Logf("%s deleted: there again after %s", describe(o), repaired(t, was, since).Round(time.Millisecond))
		told(t, r, o, created, before)
		before = r.metric(t.Context(), repairs(kind, changed))
		since = time.Now()
		patch, err := json.Marshal([]any{map[string]any{"op": "add", "path": c.path, "value": never}})
		must(t, err)
		must(t, admin.Patch(t.Context(), o.DeepCopy(), client.RawPatch("application/json-patch+json", patch)))
		t.Logf("%s changed: as before after %s", describe(o), repaired(t, was, since).Round(time.Millisecond))
		told(t, r, o, changed, before)
	}
}

func keeperChanges(t *testing.T, r *replica) {
	admin := clientFor(t, controlplane.Admin)
	patches := map[string][]string{
		"ClusterRole":        {`{"rules":[]}`, `{"rules":null,"aggregationRule":{"clusterRoleSelectors":[{"matchLabels":{"a":"b"}}]}}`},
		"Role":               {`{"rules":[{"apiGroups":[""],"resources":["pods"],"verbs":["get"]}]}`},
		"ClusterRoleBinding": {`{"subjects":[]}`, `{"subjects":[{"kind":"User","name":"mallory","apiGroup":"rbac.authorization.k8s.io"}]}`},
		"RoleBinding":        {`{"subjects":[]}`},
		"Service":            {`{"spec":{"selector":{"app.kubernetes.io/name":"other"}}}`, `{"spec":{"ports":[{"name":"https-webhook","port":444,"protocol":"TCP"}]}}`, `{"spec":{"publishNotReadyAddresses":true}}`},
		"PodDisruptionBudget": {
			`{"spec":{"selector":{"matchLabels":{"never":"there"}}}}`,
		},
		"ValidatingAdmissionPolicy": {
			`{"spec":{"matchConditions":[{"name":"never","expression":"false"}]}}`, `{"spec":{"failurePolicy":"Ignore"}}`,
			`{"spec":{"matchConstraints":{"excludeResourceRules":[{"apiGroups":["*"],"apiVersions":["*"],"operations":["*"],"resources":["*"]}]}}}`,
			`{"spec":{"matchConstraints":{"objectSelector":{"matchLabels":{"never":"there"}}}}}`,
		},
		"ValidatingAdmissionPolicyBinding": {
			`{"spec":{"validationActions":["Audit"]}}`, `{"spec":{"matchResources":{"namespaceSelector":{"matchLabels":{"never":"there"}}}}}`,
		},
		"CustomResourceDefinition": {`{"spec":{"names":{"shortNames":["other"]}}}`},
		"ConfigMap":                {`{"data":{"kept.yaml":""}}`},
	}
	list := ownManifest(t, keptKey)
	cm := &unstructured.Unstructured{Object: map[string]any{"apiVersion": "v1", "kind": "ConfigMap"}}
	cm.SetNamespace(ownNamespace)
	cm.SetName(ownObjects)
	for _, o := range append(list, cm) {
		for _, patch := range patches[o.GetKind()] {
			was, err := live(t, admin, o)
			must(t, err)
			before := r.metric(t.Context(), repairs(o.GetKind(), changed))
			since := time.Now()
			must(t, admin.Patch(t.Context(), was.DeepCopy(), mergePatch(patch)))
			took := repaired(t, was, since)
			t.Logf("%s changed by %s: as before after %s", describe(o), patch, took.Round(time.Millisecond))
			told(t, r, o, changed, before)
		}
	}
}

// Which role a binding is about cannot be changed, but somebody may have deleted it and
// made another of the same name.
func keeperBindsAnew(t *testing.T, r *replica) {
	admin := clientFor(t, controlplane.Admin)
	for _, o := range ownManifest(t, keptKey) {
		if !strings.HasSuffix(o.GetKind(), "RoleBinding") {
			continue
		}
		was, err := live(t, admin, o)
		must(t, err)
		other := was.DeepCopy()
		must(t, unstructured.SetNestedField(other.Object, "view", "roleRef", "name"))
		must(t, unstructured.SetNestedField(other.Object, "ClusterRole", "roleRef", "kind"))
		other.SetResourceVersion("")
		other.SetUID("")
		since := time.Now()
		// Were it put back in between, there would be nothing to create, and what is put back ten
		// times a minute is left as it is then.
		eventually(t, 10*time.Second, func() error {
			return r.still(func() error {
				if err := admin.Delete(t.Context(), was.DeepCopy()); client.IgnoreNotFound(err) != nil {
					return err
				}
				since = time.Now()
				return admin.Create(t.Context(), other.DeepCopy())
			})
		})
		t.Logf("%s bound to another role: as before after %s", describe(o), repaired(t, was, since).Round(time.Millisecond))
	}
}

// Roles for people cannot be put back by who must not have what is in them. That they are
// gone shows.
func keeperWatches(t *testing.T, r *replica) {
	admin := clientFor(t, controlplane.Admin)
	for _, o := range ownManifest(t, watchedKey) {
		if o.GetKind() != "ClusterRole" {
			continue
		}
		was, err := live(t, admin, o)
		must(t, err)
		must(t, admin.Delete(t.Context(), was.DeepCopy()))
		eventually(t, repairedWithin, func() error {
			if n := r.metric(t.Context(), `meshvakt_own_objects_not_as_installed{kind="ClusterRole"}`); n != 1 {
				return fmt.Errorf("%v ClusterRoles are not as installed; want 1", n)
			}
			return nil
		})
		if _, err := live(t, admin, o); !apierrors.IsNotFound(err) {
			t.Errorf("%s is there again: %v", describe(o), err)
		}
		was.SetResourceVersion("")
		was.SetUID("")
		must(t, admin.Create(t.Context(), was))
		eventually(t, repairedWithin, func() error { return asInstalled(t, r) })
	}
}

// With both bindings the rights are gone, and so is who could put them back. It shows on
// the replica, and is mended as soon as somebody gives one of them back.
func keeperIsPowerless(t *testing.T, r *replica) {
	admin := clientFor(t, controlplane.Admin)
	var bindings []*unstructured.Unstructured
	for _, o := range ownManifest(t, keptKey) {
		if o.GetKind() == "ClusterRoleBinding" {
			was, err := live(t, admin, o)
			must(t, err)
			bindings = append(bindings, was)
		}
	}
	config := plane.RestConfig(controlplane.Admin)
	config.Impersonate.UserName = "system:serviceaccount:" + ownNamespace + ":meshvakt"
	own, err := client.New(config, client.Options{Scheme: scheme})
	must(t, err)
	// At once, for the one would be put back by the other, and what is put back ten times a
	// minute is left as it is then. The rights are gone when the API server has heard of it.
	eventually(t, 20*time.Second, func() error {
		return r.still(func() error {
			for _, b := range bindings {
				if err := admin.Delete(t.Context(), b.DeepCopy()); client.IgnoreNotFound(err) != nil {
					return err
				}
			}
			var back error // somebody has let it go on
			eventually(t, 5*time.Second, func() error {
				for _, b := range bindings {
					if _, err := live(t, admin, b); err == nil {
						back = fmt.Errorf("%s is there", describe(b))
						return nil
					}
					if _, err := live(t, own, b); !apierrors.IsForbidden(err) {
						return fmt.Errorf("%s is looked for with %v; the right is still there", describe(b), err) //nolint:errorlint // may be nil
					}
				}
				return nil
			})
			return back
		})
	})
	eventually(t, repairedWithin, func() error {
		if n := r.metric(t.Context(), `meshvakt_own_objects_not_as_installed{kind="ClusterRoleBinding"}`); n != 2 {
			return fmt.Errorf("%v ClusterRoleBindings are known not to be as installed; want 2", n)
		}
		return nil
	})
	back := bindings[1].DeepCopy()
	back.SetResourceVersion("")
	back.SetUID("")
	since := time.Now()
	must(t, admin.Create(t.Context(), back))
	eventually(t, 15*time.Second, func() error { return asInstalled(t, r) })
	t.Logf("one binding given back: all is as installed after %s", time.Since(since).Round(time.Millisecond))
}

// A definition takes its objects with it. That takes two steps; and where somebody takes
// both, definition and guards are there again within seconds.
func keeperRestoresGuards(t *testing.T, r *replica) {
	admin := clientFor(t, controlplane.Admin)
	for _, o := range ownManifest(t, keptKey) {
		if !isDefinition(o) {
			continue
		}
		was, err := live(t, admin, o)
		must(t, err)
		err = admin.Delete(t.Context(), was.DeepCopy())
		if !apierrors.IsForbidden(err) || !strings.Contains(err.Error(), "meshvakt.io/allow-deletion") {
			t.Fatalf("%s: %v; must be refused until it is allowed", describe(o), err)
		}
		var guardBefore v1alpha1.MeshGuard
		must(t, admin.Get(t.Context(), client.ObjectKey{Name: "default"}, &guardBefore))
		must(t, admin.Patch(t.Context(), was.DeepCopy(), mergePatch(`{"metadata":{"annotations":{"meshvakt.io/allow-deletion":"true"}}}`)))
		before := r.metric(t.Context(), repairs(o.GetKind(), created))
		since := time.Now()
		must(t, admin.Delete(t.Context(), was.DeepCopy()))
		eventually(t, repairedWithin, func() error {
			is, err := live(t, admin, o)
			if err == nil && is.GetUID() == was.GetUID() {
				return errors.New("the old one is there")
			}
			return err
		})
		t.Logf("%s deleted: there again after %s", describe(o), time.Since(since).Round(time.Millisecond))
		told(t, r, o, created, before)
		eventually(t, repairedWithin, func() error {
			var g v1alpha1.MeshGuard
			if err := admin.Get(t.Context(), client.ObjectKey{Name: "default"}, &g); err != nil {
				return err
			}
			if !equality.Semantic.DeepEqual(g.Spec, guardBefore.Spec) {
				return fmt.Errorf("the guard is %+v; want %+v", g.Spec, guardBefore.Spec)
			}
			return nil
		})
		t.Logf("... and its objects after %s", time.Since(since).Round(time.Millisecond))
	}
	enforcing(t, "default")
}
