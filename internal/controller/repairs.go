package controller

import (
	"context"

	"k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/meshvakt/meshvakt/internal/keeper"
)

// Repairs is told of every object of Meshvakt's own that was put back, and of those that
// could not be.
type Repairs interface {
	Repaired(ctx context.Context, o client.Object, kind string, action keeper.Action, how string)
	Unrepaired(ctx context.Context, o client.Object, kind, why string)
	AsInstalled(o client.Object, kind string)
}

// inPlace are objects as this replica last put them in place, by name. They tell what
// somebody else has done from what guards, policies and certificates demand anew. A
// controller reconciles one request at a time, so nobody else reads it.
type inPlace map[string]placed

type placed struct {
	content    any
	uid        types.UID
	generation int64
}

// harm tells what somebody has done to an object since, as it is found before it is
// written; empty when nothing, or when this replica has not put it in place yet.
func (p inPlace) harm(name string, found bool, content any) keeper.Action {
	before, known := p[name]
	switch {
	case !known:
		return ""
	case !found:
		return keeper.Created
	case !equality.Semantic.DeepEqual(before.content, content):
		return keeper.Changed
	}
	return ""
}

// settle remembers an object that is in place, and tells whoever wants to know what had
// been done to it. That includes what was done after the look at it and before it was
// written.
func (p inPlace) settle(ctx context.Context, r Repairs, o client.Object, kind string, content any, harm keeper.Action) {
	before, known := p[o.GetName()]
	switch {
	case !known || harm == keeper.Created:
	case o.GetUID() != before.uid:
		harm = keeper.Created
	case o.GetGeneration() != before.generation && equality.Semantic.DeepEqual(before.content, content):
		harm = keeper.Changed
	}
	p[o.GetName()] = placed{content, o.GetUID(), o.GetGeneration()}
	if harm == "" {
		r.AsInstalled(o, kind)
		return
	}
	r.Repaired(ctx, o, kind, harm, "it decides what the API server asks about or refuses")
}
