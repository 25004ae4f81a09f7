package policies

import (
	"cmp"
	"fmt"
	"path"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
)

// Volumes of the proxy. Its bootstrap, its certificates, the sockets by which it
// gets more of them, the roots it trusts and the annotations it goes by all lie
// in volumes of the pod, and any container may mount any volume.
//
// Source: the injection template; pkg/istio-agent/agent.go for the sockets and
// certificates that it finds; pilot/cmd/pilot-agent/config for the annotations.

// judgeTrustMount: where the proxy finds its roots, tokens and sockets there must
// be a volume of the kind that Istio puts there.
func (w *workload) judgeTrustMount(c container, m *corev1.VolumeMount) {
	kinds := trustKinds(path.Clean(m.MountPath))
	i := slices.IndexFunc(w.spec.Volumes, func(v corev1.Volume) bool { return v.Name == m.Name })
	if i < 0 {
		return
	}
	v := &w.spec.Volumes[i]
	if kind := volumeKind(v); kind == "hostPath" || len(kinds) > 0 && !slices.Contains(kinds, kind) {
		w.refuse(reasonProxyVolumeForbidden(), c.field+".volumeMounts",
			fmt.Sprintf("volume %s (%s) is mounted at %s of the proxy; must be %s", quote(m.Name), kind, quote(m.MountPath), cmp.Or(strings.Join(kinds, " or "), "anything but a hostPath")), "leave the volumes of the proxy to Istio")
		return
	}
	if len(kinds) > 0 && v.EmptyDir != nil {
		w.judgeSharedVolume(v.Name)
	}
	if len(kinds) > 0 && v.CSI != nil && !slices.Contains(trustDrivers(), v.CSI.Driver) {
		w.refuse(reasonProxyVolumeForbidden(), c.field+".volumeMounts",
			fmt.Sprintf("volume %s of CSI driver %s is mounted at %s, where the proxy takes its certificates from; must be of %s", quote(m.Name), quote(v.CSI.Driver), quote(m.MountPath), strings.Join(trustDrivers(), " or ")), "leave the volumes of the proxy to Istio")
	}
	switch path.Clean(m.MountPath) {
	case rootsPath:
		w.judgeRoots(c, v)
	case rootsPath + "/crl":
		if v.ConfigMap != nil && len(v.ConfigMap.Items) > 0 {
			w.refuse(reasonProxyVolumeForbidden(), c.field+".volumeMounts",
				fmt.Sprintf("the proxy takes the list of revoked certificates from items of volume %s; must be the ConfigMap as it is", quote(v.Name)), "leave the volumes of the proxy to Istio")
		}
	case podInfoPath:
		if !ownPodInfo(v) {
			w.refuse(reasonProxyVolumeForbidden(), c.field+".volumeMounts",
				fmt.Sprintf("the proxy reads the pod's annotations from volume %s, which shows others; must be left to Istio", quote(v.Name)), "leave the volumes of the proxy to Istio")
		}
	}
}

// Where the proxy finds its roots, and the pod's annotations, by which it goes; and
// every container the token of the ServiceAccount.
const (
	tokenPath   = "/var/run/secrets/kubernetes.io/serviceaccount"
	rootsPath   = "/var/run/secrets/istio"
	podInfoPath = "/etc/istio/pod"
)

// judgeSharedVolume: in these volumes the proxy finds its bootstrap, certificates
// and sockets. Whoever can write there is whom it obeys.
func (w *workload) judgeSharedVolume(volume string) {
	for _, c := range w.applications() {
		for i, m := range c.VolumeMounts {
			if m.Name != volume || m.ReadOnly {
				continue
			}
			w.refuse(reasonProxyVolumeForbidden(), fmt.Sprintf("%s.volumeMounts[%d]", c.field, i),
				fmt.Sprintf("container %q can write to volume %s, from which the proxy starts; must not mount it", c.Name, quote(volume)), "remove the mount, or set readOnly: true")
		}
	}
}

// judgeRoots: istiod leaves foreign keys in its ConfigMap alone, so that items
// could put one of them in place of the root.
func (w *workload) judgeRoots(c container, v *corev1.Volume) {
	own := v.Projected != nil && !slices.ContainsFunc(v.Projected.Sources, func(s corev1.VolumeProjection) bool { return s.ClusterTrustBundle == nil })
	if v.ConfigMap != nil {
		own = w.rootConfigMap(v.ConfigMap.Name) && len(v.ConfigMap.Items) == 0
	}
	if !own {
		w.refuse(reasonProxyVolumeForbidden(), c.field+".volumeMounts",
			fmt.Sprintf("the proxy takes the roots it trusts from volume %s; must be ConfigMap %q as it is, or a ClusterTrustBundle", quote(v.Name), cmp.Or(w.injector().RootConfigMap, "istio-ca-root-cert")), "leave the volumes of the proxy to Istio")
	}
}

func ownPodInfo(v *corev1.Volume) bool {
	return !slices.ContainsFunc(v.DownwardAPI.Items, func(f corev1.DownwardAPIVolumeFile) bool {
		return f.FieldRef == nil || (f.Path == "annotations" || f.Path == "labels") && f.FieldRef.FieldPath != "metadata."+f.Path
	})
}

// judgeTemplateVolumes predicts what Istio's template will make of volumes and
// mounts by the names of its own.
func (w *workload) judgeTemplateVolumes() {
	if w.complete || w.plane != planeSidecar {
		return
	}
	for i := range w.spec.Volumes {
		switch name := w.spec.Volumes[i].Name; name {
		case "istio-ca-crl", "istio-podinfo", "istio-token", "istiod-ca-cert":
			w.refuse(reasonProxyVolumeForbidden(), w.field(fmt.Sprintf("spec.volumes[%d]", i)),
				fmt.Sprintf("volume %q will be merged with Istio's own of this name, in which the proxy finds what it trusts; must have another name", name), "rename the volume")
		case "credential-socket", "istio-data", "istio-envoy", "workload-certs", "workload-socket":
			w.judgeSharedVolume(name)
		}
	}
}

func (w *workload) rootConfigMap(name string) bool {
	return name == cmp.Or(w.injector().RootConfigMap, "istio-ca-root-cert")
}

// trustKinds are the kinds of volume that the templates, or Istio's integrations
// with SPIRE and GKE, mount at a path of the proxy; none where they mount nothing.
func trustKinds(at string) []string {
	switch at {
	case podInfoPath:
		return []string{"downwardAPI"}
	case "/etc/istio/proxy", "/var/lib/istio/data", "/var/run/secrets/credential-uds":
		return []string{"emptyDir"}
	case rootsPath:
		return []string{"configMap", "projected"}
	case "/var/run/secrets/istio/crl":
		return []string{"configMap"}
	case tokenPath, "/var/run/secrets/tokens":
		return []string{"projected"}
	case "/var/run/secrets/workload-spiffe-credentials", "/var/run/secrets/workload-spiffe-uds":
		return []string{"emptyDir", "csi"}
	case "/run/secrets/workload-spiffe-uds":
		return []string{"csi"}
	}
	return nil
}

// trustDrivers are those of Istio's integrations with SPIRE and GKE; others hand out
// certificates and roots of whoever asks them.
func trustDrivers() []string {
	return []string{"csi.spiffe.io", "workloadcertificates.security.cloud.google.com"}
}

// meshCertificates reports whether a mount is there because the whole mesh has its
// certificates in Secrets, by global.mountMtlsCerts.
func (w *workload) meshCertificates(m *corev1.VolumeMount) bool {
	return w.complete && w.injector().MountsCertificates && m.Name == "istio-certs" && path.Clean(m.MountPath) == certsPath
}

func renderedMount(at string) bool {
	at = path.Clean(at)
	return len(trustKinds(at)) > 0 || at == "/etc/istio/custom-bootstrap" // refused by its annotation
}

func volumeKind(v *corev1.Volume) string {
	switch {
	case v.EmptyDir != nil:
		return "emptyDir"
	case v.ConfigMap != nil:
		return "configMap"
	case v.Secret != nil:
		return "secret"
	case v.Projected != nil:
		return "projected"
	case v.DownwardAPI != nil:
		return "downwardAPI"
	case v.CSI != nil:
		return "csi"
	case v.HostPath != nil:
		return "hostPath"
	default:
		return "other"
	}
}
