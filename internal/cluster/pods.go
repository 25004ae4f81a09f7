package cluster

import (
	"bufio"
	"bytes"
	"compress/flate"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"iter"
	"maps"
	"slices"

	admissionv1 "k8s.io/api/admission/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/meshvakt/meshvakt/policies/facts"
)

// What a live read of many objects may hold. A pod with a sidecar takes 22 KiB when
// it is decoded, and there are namespaces with thousands; those of one controller
// are nearly the same, and so some 100 bytes each when they are packed.
const (
	// podPageSize is how many pods are decoded at a time.
	podPageSize = 100
	// packedAtMost bounds what the packed pods of a namespace take.
	packedAtMost = 8 << 20
	// heavyReads is how many requests may hold the pods of a namespace, or all
	// namespaces and policies, at the same time.
	heavyReads = 2
)

// lease waits for its turn to read and hold much, and keeps it until ctx ends, as
// that of a request does with the answer. Whoever would wait for longer than that
// gets an error.
func (s *Source) lease(ctx context.Context) error {
	select {
	case s.heavy <- struct{}{}:
		context.AfterFunc(ctx, func() { <-s.heavy })
		return nil
	case <-ctx.Done():
		return fmt.Errorf("wait for other requests that read as much: %w", context.Cause(ctx))
	}
}

// needsPods reports whether the request is judged together with the pods that run
// in the namespace: it puts the namespace under a guard of mesh membership, or
// changes the labels of one that is.
func (l *liveRead) needsPods(r *facts.Review) bool {
	ns, ok := r.Object.(*corev1.Namespace)
	if !ok || r.Operation != admissionv1.Update {
		return false
	}
	if old, ok := r.OldObject.(*corev1.Namespace); ok && maps.Equal(old.Labels, ns.Labels) {
		return false
	}
	return slices.ContainsFunc(l.cluster.Guards, func(g facts.Guard) bool {
		return g.MeshMembership != nil && l.cluster.Selects(&g, ns.Name, ns.Labels)
	})
}

// pods reads the pods that run in a namespace, a page at a time, so that at no
// moment more is held than one page and what is packed.
func (l *liveRead) pods(ctx context.Context, namespace string) error {
	ns := l.cluster.Namespaces[namespace]
	if ns == nil {
		return nil
	}
	p, err := newPodPacker()
	if err != nil {
		return err
	}
	list := &corev1.PodList{}
	err = l.pages(ctx, list, func() error {
		for i := range list.Items {
			if pod := slimPod(&list.Items[i]); pod != nil {
				if err := p.add(pod); err != nil {
					return fmt.Errorf("hold the pods of namespace %q: %w", namespace, err)
				}
			}
		}
		return nil
	}, client.InNamespace(namespace), client.Limit(podPageSize))
	if err != nil {
		return err
	}
	with := *ns
	if with.Pods, err = p.packed(); err != nil {
		return err
	}
	l.cluster.Namespaces[namespace] = &with
	return nil
}

// slimPod returns what is judged of a pod that runs, and nil for one that has ended,
// or stands for what the kubelet runs from a file.
func slimPod(p *corev1.Pod) *corev1.Pod {
	_, mirror := p.Annotations[corev1.MirrorPodAnnotationKey]
	if mirror || p.Status.Phase == corev1.PodSucceeded || p.Status.Phase == corev1.PodFailed {
		return nil
	}
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{
			Name: p.Name, Namespace: p.Namespace, Labels: p.Labels, Annotations: p.Annotations, DeletionTimestamp: p.DeletionTimestamp,
		},
		Spec:   p.Spec,
		Status: corev1.PodStatus{Phase: p.Status.Phase},
	}
}

// packedPods are pods in one compressed stream, each behind its length.
type packedPods []byte

// All implements facts.Pods. What was packed here can be unpacked: that it cannot is
// a fault of this program, on which no request must be answered.
func (p packedPods) All() iter.Seq[*corev1.Pod] {
	return func(yield func(*corev1.Pod) bool) {
		stream := bufio.NewReader(flate.NewReader(bytes.NewReader(p)))
		var text []byte
		for {
			size, err := binary.ReadUvarint(stream)
			if errors.Is(err, io.EOF) {
				return
			}
			if err == nil {
				text = slices.Grow(text[:0], int(size))[:size] //nolint:gosec // the size of a pod
				_, err = io.ReadFull(stream, text)
			}
			var pod corev1.Pod
			if err == nil {
				err = pod.Unmarshal(text)
			}
			if err != nil {
				panic(fmt.Errorf("unpack pods: %w", err))
			}
			if !yield(&pod) {
				return
			}
		}
	}
}

// podPacker makes packedPods.
type podPacker struct {
	out    bytes.Buffer
	stream *flate.Writer
	text   []byte
}

func newPodPacker() (*podPacker, error) {
	p := &podPacker{}
	var err error
	p.stream, err = flate.NewWriter(&p.out, flate.BestSpeed)
	return p, err
}

func (p *podPacker) add(pod *corev1.Pod) error {
	size := pod.Size()
	p.text = slices.Grow(p.text[:0], size)[:size]
	if _, err := pod.MarshalToSizedBuffer(p.text); err != nil {
		return err
	}
	if _, err := p.stream.Write(binary.AppendUvarint(nil, uint64(size))); err != nil { //nolint:gosec // not negative
		return err
	}
	if _, err := p.stream.Write(p.text); err != nil {
		return err
	}
	if p.out.Len() > packedAtMost {
		return fmt.Errorf("they take more than %d MiB", packedAtMost>>20)
	}
	return nil
}

func (p *podPacker) packed() (facts.Pods, error) {
	if err := p.stream.Close(); err != nil {
		return nil, err
	}
	return packedPods(p.out.Bytes()), nil
}
