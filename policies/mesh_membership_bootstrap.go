package policies

import (
	"fmt"
	"slices"
	"strings"

	meshv1alpha1 "istio.io/api/mesh/v1alpha1"
)

// The bootstrap of Envoy is a template in JSON, and the agent puts some values into
// it as they are: a quote ends the text in which the value stands, and what follows
// is configuration, such as a listener without TLS on a port that is not captured.
//
// Source: tools/packaging/common/envoy_bootstrap.json; pkg/bootstrap/config.go,
// getStatsOptions and getServiceCluster.
const (
	extraStatTagsKey = "sidecar.istio.io/extraStatTags"
	statsPrefixesKey = "sidecar.istio.io/statsInclusionPrefixes"
	statsSuffixesKey = "sidecar.istio.io/statsInclusionSuffixes"
)

// breaksBootstrap reports whether a value does not stay inside its quotes.
func breaksBootstrap(v string) bool {
	return strings.ContainsFunc(v, func(r rune) bool { return r == '"' || r == '\\' || r < ' ' })
}

const withoutQuotes = "ends the text in which it stands in the proxy's bootstrap, and may add listeners without TLS; must be without quotes, backslashes and control characters"

// judgeBootstrapAnnotations: the agent reads them at every start of the proxy.
func (w *workload) judgeBootstrapAnnotations() {
	for _, key := range []string{extraStatTagsKey, statsPrefixesKey, statsSuffixesKey} {
		if v := w.meta.Annotations[key]; breaksBootstrap(v) {
			w.refuse(reasonBootstrapOverridden(), w.annotationField(key), fmt.Sprintf("%s %s", quote(v), withoutQuotes), "remove them, or the annotation")
		}
	}
}

// judgeBootstrapFields judges the fields of a ProxyConfig that get there.
func (w *workload) judgeBootstrapFields(config *meshv1alpha1.ProxyConfig, field string) {
	if w.has(reasonBootstrapOverridden()) {
		return // what the annotation says comes back in the environment
	}
	matcher := config.GetProxyStatsMatcher()
	for _, v := range slices.Concat([]string{config.GetServiceCluster()}, config.GetExtraStatTags(), matcher.GetInclusionPrefixes(), matcher.GetInclusionSuffixes()) {
		if breaksBootstrap(v) {
			w.refuse(reasonBootstrapOverridden(), field, fmt.Sprintf("%s %s", quote(v), withoutQuotes), "remove them, or the value")
			return
		}
	}
}
