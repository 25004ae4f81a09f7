package survey

import (
	"context"
	"fmt"
	"strconv"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/meshvakt/meshvakt/internal/check"
)

// pageSize bounds what one answer of the API server may hold.
const pageSize = 500

// page is a list of any kind.
type page struct {
	Metadata struct {
		Continue string `json:"continue"`
	} `json:"metadata"`
	Items []jsontext.Value `json:"items"`
}

// place is what is listed: a resource, where, and of which labels.
type place struct {
	schema.GroupVersionResource
	namespace, selector string
}

func (p place) path() string {
	prefix := "/apis/" + p.Group + "/" + p.Version
	if p.Group == "" {
		prefix = "/api/" + p.Version
	}
	if p.namespace != "" {
		prefix += "/namespaces/" + p.namespace
	}
	return prefix + "/" + p.Resource
}

// each gives the JSON of every object, good until take returns. Where a list takes so long
// that the API server has forgotten its beginning, it goes on from there with what is now.
func (s *Survey) each(ctx context.Context, p place, take func(raw []byte) error) error {
	next := ""
	for {
		request := s.server.RESTClient().Get().AbsPath(p.path()).Param("limit", strconv.Itoa(pageSize))
		if next != "" {
			request = request.Param("continue", next)
		}
		if p.selector != "" {
			request = request.Param("labelSelector", p.selector)
		}
		body, err := request.Do(ctx).Raw()
		if again := restart(body, err); again != "" {
			next = again
			continue
		}
		if err != nil {
			return fmt.Errorf("list %s: %w", p.GroupResource(), err)
		}
		var list page
		if err := json.Unmarshal(body, &list); err != nil {
			return fmt.Errorf("read the list of %s: %w", p.GroupResource(), err)
		}
		for _, raw := range list.Items {
			if err := take(raw); err != nil {
				return err
			}
		}
		if next = list.Metadata.Continue; next == "" {
			return nil
		}
	}
}

// restart returns the token that the API server offers in place of one that has expired.
// It is in the answer; the error of the client does not always carry it.
func restart(body []byte, err error) string {
	if !apierrors.IsResourceExpired(err) && !apierrors.IsGone(err) {
		return ""
	}
	var status metav1.Status
	if json.Unmarshal(body, &status) != nil {
		return ""
	}
	return status.Continue
}

// head is what names an object.
type head struct {
	Metadata struct {
		Namespace string `json:"namespace"`
		Name      string `json:"name"`
	} `json:"metadata"`
}

// document is an object in the form that package check reads.
func document(kind schema.GroupVersionKind, raw []byte) (check.Document, error) {
	var h head
	if err := json.Unmarshal(raw, &h); err != nil {
		return check.Document{}, fmt.Errorf("read a %s: %w", kind.Kind, err)
	}
	origin := kind.Kind + " " + h.Metadata.Name
	if h.Metadata.Namespace != "" {
		origin = kind.Kind + " " + h.Metadata.Namespace + "/" + h.Metadata.Name
	}
	return check.Document{Kind: kind, Namespace: h.Metadata.Namespace, Name: h.Metadata.Name, JSON: raw, Origin: origin, Stored: true}, nil
}
