package controlplane

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/discovery"
	"k8s.io/client-go/dynamic"
)

// crd is a CustomResourceDefinition.
type crd = *unstructured.Unstructured

// readCRDs reads the CRDs of Istio and cert-manager from the pinned modules.
func readCRDs(ctx context.Context) ([]crd, error) {
	binaries, err := binariesDir(ctx)
	if err != nil {
		return nil, err
	}
	pinned := filepath.Join(binaries, "crds")
	var crds []crd
	for _, source := range []struct{ module, files string }{
		{"istio.io/api", "kubernetes/customresourcedefinitions.gen.yaml"},
		{"github.com/cert-manager/cert-manager", "deploy/crds/*.yaml"},
	} {
		m, err := downloadModule(ctx, pinned, source.module)
		if err != nil {
			return nil, err
		}
		files, err := filepath.Glob(filepath.Join(m.Dir, source.files))
		if err != nil || len(files) == 0 {
			return nil, fmt.Errorf("find CRDs of %s: no file %s", source.module, source.files)
		}
		for _, file := range files {
			manifest, err := os.ReadFile(file)
			if err != nil {
				return nil, fmt.Errorf("read CRDs: %w", err)
			}
			objects, err := decodeManifest(manifest)
			if err != nil {
				return nil, fmt.Errorf("read CRDs in %s: %w", file, err)
			}
			crds = append(crds, objects...)
		}
	}
	return crds, nil
}

// installCRDs creates the CRDs and waits until their resources are served.
func (cp *ControlPlane) installCRDs(ctx context.Context, read func() ([]crd, error)) error {
	crds, err := read()
	if err != nil {
		return err
	}
	client, err := dynamic.NewForConfig(cp.RestConfig(Admin))
	if err != nil {
		return fmt.Errorf("create client: %w", err)
	}
	definitions := client.Resource(schema.GroupVersionResource{
		Group: "apiextensions.k8s.io", Version: "v1", Resource: "customresourcedefinitions",
	})
	var wg sync.WaitGroup
	failures := make([]error, len(crds))
	for i, c := range crds {
		wg.Go(func() {
			if _, err := definitions.Create(ctx, c, metav1.CreateOptions{FieldManager: fieldManager}); err != nil {
				failures[i] = fmt.Errorf("install %s: %w", c.GetName(), err)
			}
		})
	}
	wg.Wait()
	if err := errors.Join(failures...); err != nil {
		return err
	}
	return cp.waitServed(ctx, crds)
}

// waitServed waits until discovery lists what the CRDs define, which it does once they
// are Established. To ask for the condition itself would mean to read a CRD of 100 kB
// or more again and again, at a fifth of the whole boot.
func (cp *ControlPlane) waitServed(ctx context.Context, crds []crd) error {
	client, err := discovery.NewDiscoveryClientForConfig(cp.RestConfig(Admin))
	if err != nil {
		return fmt.Errorf("create client: %w", err)
	}
	wanted := map[string][]string{} // group version: resources
	for _, c := range crds {
		group, _, _ := unstructured.NestedString(c.Object, "spec", "group")
		resource, _, _ := unstructured.NestedString(c.Object, "spec", "names", "plural")
		versions, _, _ := unstructured.NestedSlice(c.Object, "spec", "versions")
		for _, v := range versions {
			version, _ := v.(map[string]any)
			if version["served"] == true {
				gv := fmt.Sprintf("%s/%s", group, version["name"])
				wanted[gv] = append(wanted[gv], resource)
			}
		}
	}
	for gv, resources := range wanted {
		err := poll(ctx, func(context.Context) error {
			served, err := client.ServerResourcesForGroupVersion(gv)
			if err != nil {
				return err
			}
			for _, resource := range resources {
				if !slices.ContainsFunc(served.APIResources, func(r metav1.APIResource) bool { return r.Name == resource }) {
					return fmt.Errorf("%s is not served", resource)
				}
			}
			return nil
		})
		if err != nil {
			return fmt.Errorf("wait for CRDs of %s: %w", gv, err)
		}
	}
	return nil
}
