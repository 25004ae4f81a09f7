package policies

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/yaml"

	"github.com/meshvakt/meshvakt/api/v1alpha1"
	"github.com/meshvakt/meshvakt/policies/facts"
)

// Worker threads of Envoy. The agent takes ProxyConfig's concurrency from annotation
// proxy.istio.io/config, else from variable PROXY_CONFIG, into which the injector has
// rendered the annotation together with what is configured elsewhere; else the CPU
// limit, rounded up (pilot/cmd/pilot-agent/config, ConstructProxyConfig).

// concurrencyField is the name of the field in a ProxyConfig.
const concurrencyField = "concurrency"

// concurrencyChanges states the number of worker threads of the guards, the last of
// which has the last word.
func (s *sidecars) concurrencyChanges(guards []*facts.Guard) []facts.Change {
	var changes []facts.Change
	annotation := s.meta.Annotations[proxyConfigKey]
	i := s.proxyConfigVariable()
	for _, g := range guards {
		want := g.SidecarResources.Concurrency
		if want == nil {
			continue
		}
		replace := g.SidecarResources.Mode == v1alpha1.ModeExact
		if stated, ok := s.concurrency(); ok && (stated == *want || !replace) {
			continue
		}
		merged, err := withConcurrency(annotation, *want)
		if err != nil {
			return nil // mesh-membership refuses what cannot be read
		}
		changes = []facts.Change{annotationChange(proxyConfigKey, merged)}
		if i < 0 {
			continue
		}
		proxy := &s.containers[0]
		if merged, err = withConcurrency(proxy.declared.Env[i].Value, *want); err == nil {
			changes = append(changes, facts.Change{
				Path: []string{"spec", proxy.list, strconv.Itoa(proxy.index), "env", strconv.Itoa(i), "value"}, Value: merged,
			})
		}
	}
	return changes
}

// proxyConfigVariable is the position of PROXY_CONFIG in the proxy's environment, -1
// if it is not there.
func (s *sidecars) proxyConfigVariable() int {
	if s.containers[0].declared == nil {
		return -1
	}
	return slices.IndexFunc(s.containers[0].declared.Env, func(e corev1.EnvVar) bool { return e.Name == "PROXY_CONFIG" })
}

// concurrency is the number of worker threads that is stated anywhere.
func (s *sidecars) concurrency() (int32, bool) {
	texts := []string{s.meta.Annotations[proxyConfigKey]}
	if i := s.proxyConfigVariable(); i >= 0 {
		texts = append(texts, s.containers[0].declared.Env[i].Value)
	}
	for _, text := range texts {
		config := map[string]json.RawMessage{}
		errText := yaml.Unmarshal([]byte(text), &config)
		n, errNumber := strconv.ParseInt(strings.Trim(string(config[concurrencyField]), `"`), 10, 32)
		if errors.Join(errText, errNumber) == nil {
			return int32(n), true
		}
	}
	return 0, false
}

// withConcurrency returns a ProxyConfig with this number of worker threads and all else
// as it was, as JSON, which YAML is a superset of.
func withConcurrency(text string, n int32) (string, error) {
	config := map[string]json.RawMessage{}
	if err := yaml.Unmarshal([]byte(text), &config); err != nil {
		return "", err
	}
	config[concurrencyField] = json.RawMessage(strconv.Itoa(int(n)))
	// Not json.Marshal, which would escape what reads better as it is.
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	err := enc.Encode(config)
	return strings.TrimSpace(b.String()), err
}

// judgeConcurrency judges the proxy that is to be stored.
func (s *sidecars) judgeConcurrency(g *facts.Guard) []Finding {
	want := g.SidecarResources.Concurrency
	if want == nil {
		return nil
	}
	found, ok := s.concurrency()
	switch {
	case ok && (found == *want || g.SidecarResources.Mode != v1alpha1.ModeExact):
		return nil
	case ok:
		return []Finding{resourcesBreach(reasonProxyConcurrency(), s.inPod("metadata.annotations["+proxyConfigKey+"]"),
			fmt.Sprintf("concurrency of the proxy is %d; must be %d by MeshGuard %q", found, *want, g.Name),
			"leave it to Meshvakt: take concurrency out of the annotation")}
	}
	return []Finding{resourcesBreach(reasonProxyConcurrency(), s.inPod("metadata.annotations["+proxyConfigKey+"]"),
		fmt.Sprintf("the proxy states no concurrency; must be %d by MeshGuard %q", *want, g.Name), againText)}
}

// replacedConcurrency remarks on a number of worker threads that pods will not have.
func (s *sidecars) replacedConcurrency(g *facts.Guard) []Finding {
	want := g.SidecarResources.Concurrency
	if want == nil || g.SidecarResources.Mode != v1alpha1.ModeExact {
		return nil
	}
	stated, ok := s.concurrency()
	if !ok || stated == *want {
		return nil
	}
	return []Finding{resourcesRemark(reasonSidecarNumbersReplaced(), s.inPod("metadata.annotations["+proxyConfigKey+"]"),
		fmt.Sprintf("concurrency of the proxy is %d in pods, and not %d: spec.sidecarResources.mode Exact by MeshGuard %q", *want, stated, g.Name),
		"take concurrency out of the annotation")}
}
