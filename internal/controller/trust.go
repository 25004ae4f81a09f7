package controller

import (
	"context"
	"fmt"

	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	toolscache "k8s.io/client-go/tools/cache"
	"sigs.k8s.io/controller-runtime/pkg/cache"

	"github.com/meshvakt/meshvakt/webhook/servingcert"
)

// TrustObserver tells a replica's certificate source what CAs the API server has
// been told to trust. It runs on every replica.
type TrustObserver struct {
	Cache  cache.Cache
	Bundle *servingcert.Bundle
}

// NeedLeaderElection is false: each replica has a certificate of its own.
func (o *TrustObserver) NeedLeaderElection() bool { return false }

// Start watches the webhook configuration until ctx ends.
func (o *TrustObserver) Start(ctx context.Context) error {
	informer, err := o.Cache.GetInformer(ctx, &admissionregistrationv1.ValidatingWebhookConfiguration{})
	if err != nil {
		return fmt.Errorf("watch ValidatingWebhookConfiguration: %w", err)
	}
	observe := func(object any) {
		if config, ok := object.(*admissionregistrationv1.ValidatingWebhookConfiguration); ok {
			bundles := make([][]byte, 0, len(config.Webhooks))
			for i := range config.Webhooks {
				bundles = append(bundles, config.Webhooks[i].ClientConfig.CABundle)
			}
			o.Bundle.Observe(bundles...)
		}
	}
	registration, err := informer.AddEventHandler(toolscache.ResourceEventHandlerFuncs{
		AddFunc:    observe,
		UpdateFunc: func(_, object any) { observe(object) },
		DeleteFunc: func(any) { o.Bundle.Observe() },
	})
	if err != nil {
		return fmt.Errorf("watch ValidatingWebhookConfiguration: %w", err)
	}
	if !toolscache.WaitForCacheSync(ctx.Done(), registration.HasSynced) {
		return nil
	}
	var list admissionregistrationv1.ValidatingWebhookConfigurationList
	if err := o.Cache.List(ctx, &list); err != nil {
		return fmt.Errorf("list ValidatingWebhookConfigurations: %w", err)
	}
	if len(list.Items) == 0 {
		o.Bundle.Observe()
	}
	<-ctx.Done()
	return nil
}
