package main

import (
	"errors"
	"io"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"k8s.io/client-go/rest"
)

// answering is an API server by the codes with which it answers; 0 is no answer.
type answering struct{ readyz, api int }

func (a *answering) RoundTrip(req *http.Request) (*http.Response, error) {
	code := a.api
	if req.URL.Path == "/readyz" {
		code = a.readyz
	}
	if code == 0 {
		return nil, errors.New("connection refused")
	}
	return &http.Response{
		StatusCode: code, Request: req, Header: http.Header{"Content-Type": {"application/json"}},
		Body: io.NopCloser(strings.NewReader(`{"kind":"APIGroupList","apiVersion":"v1","groups":[]}`)),
	}, nil
}

// Whatever an API server says, it is waited for, until it is ready or is seen to serve what it has.
func TestWaitForTheAPIServer(t *testing.T) {
	for name, c := range map[string]struct {
		at              answering
		first, inMinute string // what is missing; nothing if empty
	}{
		"ready":                         {at: answering{200, 200}},
		"away":                          {answering{0, 0}, "does not answer", "does not answer"},
		"a balancer without a server":   {answering{503, 503}, "is not ready", "is not ready"},
		"it never becomes ready, works": {answering{500, 200}, "is not ready", ""},
		"it does not say":               {answering{403, 200}, "is not ready", ""},
		"it knows nobody":               {answering{401, 401}, "is not ready", "is not ready"},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				a, err := newAPIServer(&rest.Config{Host: "https://kubernetes.default.svc", Transport: &c.at})
				if err != nil {
					t.Fatal(err)
				}
				is := func(when, want string) {
					t.Helper()
					switch err := a.ready(t.Context()); {
					case want == "" && err != nil:
						t.Errorf("%s: %v; must be reached", when, err)
					case want != "" && (err == nil || !strings.Contains(err.Error(), "https://kubernetes.default.svc "+want)):
						t.Errorf("%s: %v; must say that it %s", when, err, want)
					}
				}
				is("at first", c.first)
				time.Sleep(readyFor)
				is("up to the minute", c.first)
				time.Sleep(askAgain)
				is("after a minute", c.inMinute)
			})
		})
	}
}

// One that was away for long and has just started gets its minute.
func TestWaitForTheAPIServerThatComesBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		at := &answering{readyz: 500}
		a, err := newAPIServer(&rest.Config{Host: "https://kubernetes.default.svc", Transport: at})
		if err != nil {
			t.Fatal(err)
		}
		for range 2 {
			*at = answering{readyz: 500, api: 200}
			if err := a.ready(t.Context()); err == nil {
				t.Error("reached although it has only just begun to answer")
			}
			at.readyz = 0
			time.Sleep(time.Hour)
			if err := a.ready(t.Context()); err == nil {
				t.Error("reached although it is away")
			}
		}
	})
}
