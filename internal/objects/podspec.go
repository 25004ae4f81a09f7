package objects

import (
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
)

// What policies read of the spec of a pod, and nothing else: pods come by the
// thousand, and what nobody looks at takes most of the time. A test holds these
// fields against those that the policies name.

func podSpec(r *reader, s *corev1.PodSpec) {
	for name := range r.fields() {
		switch name {
		case "volumes":
			list(r, &s.Volumes, volume)
		case "initContainers":
			list(r, &s.InitContainers, container)
		case "containers":
			list(r, &s.Containers, container)
		case "ephemeralContainers":
			list(r, &s.EphemeralContainers, ephemeralContainer)
		case "hostNetwork":
			boolean(r, &s.HostNetwork)
		case "hostPID":
			boolean(r, &s.HostPID)
		case "shareProcessNamespace":
			pointer(r, &s.ShareProcessNamespace, boolean)
		case "securityContext":
			pointer(r, &s.SecurityContext, podSecurityContext)
		case "resources":
			pointer(r, &s.Resources, resources)
		case "nodeName":
			stringValue(r, &s.NodeName)
		case "nodeSelector":
			stringMap(r, &s.NodeSelector)
		case "affinity":
			pointer(r, &s.Affinity, affinity)
		case "tolerations":
			list(r, &s.Tolerations, toleration)
		case "priorityClassName":
			stringValue(r, &s.PriorityClassName)
		case "activeDeadlineSeconds":
			pointer(r, &s.ActiveDeadlineSeconds, integer)
		default:
			r.skip()
		}
	}
}

func resources(r *reader, q *corev1.ResourceRequirements) {
	for name := range r.fields() {
		switch name {
		case "limits":
			resourceList(r, &q.Limits)
		case "requests":
			resourceList(r, &q.Requests)
		default:
			r.skip()
		}
	}
}

func resourceList(r *reader, into *corev1.ResourceList) {
	if r.null() {
		return
	}
	list := corev1.ResourceList{}
	for name := range r.fields() {
		var q resource.Quantity
		quantity(r, &q)
		list[corev1.ResourceName(name)] = q
	}
	*into = list
}

func podSecurityContext(r *reader, s *corev1.PodSecurityContext) {
	for name := range r.fields() {
		switch name {
		case "runAsUser":
			pointer(r, &s.RunAsUser, integer)
		case "runAsGroup":
			pointer(r, &s.RunAsGroup, integer)
		case "supplementalGroups":
			list(r, &s.SupplementalGroups, integer)
		case "fsGroup":
			pointer(r, &s.FSGroup, integer)
		default:
			r.skip()
		}
	}
}

func ephemeralContainer(r *reader, e *corev1.EphemeralContainer) {
	for name := range r.fields() {
		if name == "targetContainerName" {
			stringValue(r, &e.TargetContainerName)
			continue
		}
		containerField(r, name, (*corev1.Container)(&e.EphemeralContainerCommon))
	}
}

func container(r *reader, c *corev1.Container) {
	for name := range r.fields() {
		containerField(r, name, c)
	}
}

func containerField(r *reader, name string, c *corev1.Container) {
	switch name {
	case "name":
		stringValue(r, &c.Name)
	case "image":
		stringValue(r, &c.Image)
	case "command":
		list(r, &c.Command, stringValue)
	case "args":
		list(r, &c.Args, stringValue)
	case "ports":
		list(r, &c.Ports, containerPort)
	case "env":
		list(r, &c.Env, envVar)
	case "envFrom":
		list(r, &c.EnvFrom, presence)
	case "workingDir":
		stringValue(r, &c.WorkingDir)
	case "resources":
		resources(r, &c.Resources)
	case "restartPolicy":
		pointer(r, &c.RestartPolicy, stringValue)
	case "volumeMounts":
		list(r, &c.VolumeMounts, volumeMount)
	case "livenessProbe":
		pointer(r, &c.LivenessProbe, probe)
	case "readinessProbe":
		pointer(r, &c.ReadinessProbe, probe)
	case "startupProbe":
		pointer(r, &c.StartupProbe, probe)
	case "lifecycle":
		pointer(r, &c.Lifecycle, lifecycle)
	case "securityContext":
		pointer(r, &c.SecurityContext, securityContext)
	default:
		r.skip()
	}
}

func containerPort(r *reader, p *corev1.ContainerPort) {
	for name := range r.fields() {
		switch name {
		case "containerPort":
			integer(r, &p.ContainerPort)
		case "protocol":
			stringValue(r, &p.Protocol)
		default:
			r.skip()
		}
	}
}

func envVar(r *reader, e *corev1.EnvVar) {
	for name := range r.fields() {
		switch name {
		case "name":
			stringValue(r, &e.Name)
		case "value":
			stringValue(r, &e.Value)
		case "valueFrom":
			pointer(r, &e.ValueFrom, envVarSource)
		default:
			r.skip()
		}
	}
}

func envVarSource(r *reader, s *corev1.EnvVarSource) {
	for name := range r.fields() {
		switch name {
		case "fieldRef":
			pointer(r, &s.FieldRef, objectFieldSelector)
		case "resourceFieldRef":
			pointer(r, &s.ResourceFieldRef, presence)
		default:
			r.skip()
		}
	}
}

func objectFieldSelector(r *reader, s *corev1.ObjectFieldSelector) {
	for name := range r.fields() {
		if name == "fieldPath" {
			stringValue(r, &s.FieldPath)
			continue
		}
		r.skip()
	}
}

func volumeMount(r *reader, m *corev1.VolumeMount) {
	for name := range r.fields() {
		switch name {
		case "name":
			stringValue(r, &m.Name)
		case "readOnly":
			boolean(r, &m.ReadOnly)
		case "mountPath":
			stringValue(r, &m.MountPath)
		default:
			r.skip()
		}
	}
}

func probe(r *reader, p *corev1.Probe) {
	for name := range r.fields() {
		switch name {
		case "exec":
			pointer(r, &p.Exec, execAction)
		case "httpGet":
			pointer(r, &p.HTTPGet, presence)
		case "tcpSocket":
			pointer(r, &p.TCPSocket, presence)
		case "grpc":
			pointer(r, &p.GRPC, presence)
		default:
			r.skip()
		}
	}
}

func lifecycle(r *reader, l *corev1.Lifecycle) {
	for name := range r.fields() {
		switch name {
		case "postStart":
			pointer(r, &l.PostStart, lifecycleHandler)
		case "preStop":
			pointer(r, &l.PreStop, lifecycleHandler)
		default:
			r.skip()
		}
	}
}

func lifecycleHandler(r *reader, h *corev1.LifecycleHandler) {
	for name := range r.fields() {
		switch name {
		case "exec":
			pointer(r, &h.Exec, execAction)
		case "httpGet":
			pointer(r, &h.HTTPGet, presence)
		case "tcpSocket":
			pointer(r, &h.TCPSocket, presence)
		default:
			r.skip()
		}
	}
}

func execAction(r *reader, e *corev1.ExecAction) {
	for name := range r.fields() {
		if name == "command" {
			list(r, &e.Command, stringValue)
			continue
		}
		r.skip()
	}
}

func securityContext(r *reader, s *corev1.SecurityContext) {
	for name := range r.fields() {
		switch name {
		case "capabilities":
			pointer(r, &s.Capabilities, capabilities)
		case "privileged":
			pointer(r, &s.Privileged, boolean)
		case "runAsUser":
			pointer(r, &s.RunAsUser, integer)
		case "runAsGroup":
			pointer(r, &s.RunAsGroup, integer)
		default:
			r.skip()
		}
	}
}

func capabilities(r *reader, c *corev1.Capabilities) {
	for name := range r.fields() {
		if name == "add" {
			list(r, &c.Add, stringValue)
			continue
		}
		r.skip()
	}
}

func volume(r *reader, v *corev1.Volume) {
	for name := range r.fields() {
		switch name {
		case "name":
			stringValue(r, &v.Name)
		case "hostPath":
			pointer(r, &v.HostPath, presence)
		case "emptyDir":
			pointer(r, &v.EmptyDir, presence)
		case "secret":
			pointer(r, &v.Secret, presence)
		case "csi":
			pointer(r, &v.CSI, csiVolume)
		case "configMap":
			pointer(r, &v.ConfigMap, configMapVolume)
		case "downwardAPI":
			pointer(r, &v.DownwardAPI, downwardAPIVolume)
		case "projected":
			pointer(r, &v.Projected, projectedVolume)
		default:
			r.skip()
		}
	}
}

func configMapVolume(r *reader, s *corev1.ConfigMapVolumeSource) {
	for name := range r.fields() {
		switch name {
		case "name":
			stringValue(r, &s.Name)
		case "items":
			list(r, &s.Items, presence)
		default:
			r.skip()
		}
	}
}

func downwardAPIVolume(r *reader, s *corev1.DownwardAPIVolumeSource) {
	for name := range r.fields() {
		if name == "items" {
			list(r, &s.Items, downwardAPIFile)
			continue
		}
		r.skip()
	}
}

func downwardAPIFile(r *reader, f *corev1.DownwardAPIVolumeFile) {
	for name := range r.fields() {
		switch name {
		case "path":
			stringValue(r, &f.Path)
		case "fieldRef":
			pointer(r, &f.FieldRef, objectFieldSelector)
		default:
			r.skip()
		}
	}
}

func projectedVolume(r *reader, s *corev1.ProjectedVolumeSource) {
	for name := range r.fields() {
		if name == "sources" {
			list(r, &s.Sources, volumeProjection)
			continue
		}
		r.skip()
	}
}

func volumeProjection(r *reader, p *corev1.VolumeProjection) {
	for name := range r.fields() {
		if name == "clusterTrustBundle" {
			pointer(r, &p.ClusterTrustBundle, presence)
			continue
		}
		r.skip()
	}
}

func csiVolume(r *reader, s *corev1.CSIVolumeSource) {
	for name := range r.fields() {
		if name == "driver" {
			stringValue(r, &s.Driver)
			continue
		}
		r.skip()
	}
}
