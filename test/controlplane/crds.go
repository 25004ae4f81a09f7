package controlplane

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
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
	// All at once: the API server compiles the schema and the CEL rules of each.
	var wg sync.WaitGroup
	failures := make([]error, len(crds))
	for i, c := range crds {
		wg.Go(func() {
			_, err := definitions.Create(ctx, c, metav1.CreateOptions{FieldManager: fieldManager})
			if err == nil {
				err = poll(ctx, func(ctx context.Context) error {
					return established(ctx, definitions, c.GetName())
				})
			}
			if err != nil {
				failures[i] = fmt.Errorf("install %s: %w", c.GetName(), err)
			}
		})
	}
	wg.Wait()
	return errors.Join(failures...)
}

func established(ctx context.Context, definitions dynamic.ResourceInterface, name string) error {
	current, err := definitions.Get(ctx, name, metav1.GetOptions{})
	if err != nil {
		return err
	}
	conditions, _, err := unstructured.NestedSlice(current.Object, "status", "conditions")
	if err != nil {
		return err
	}
	for _, c := range conditions {
		condition, _ := c.(map[string]any)
		if condition["type"] == "Established" && condition["status"] == "True" {
			return nil
		}
	}
	return errors.New("not established")
}
