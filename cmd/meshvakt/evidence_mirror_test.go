package main

import (
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/spf13/pflag"
)

func TestMirrorFlags(t *testing.T) {
	nothing := filepath.Join(t.TempDir(), "ca.crt")
	if err := os.WriteFile(nothing, []byte("no certificate"), 0o600); err != nil {
		t.Fatal(err)
	}
	for args, want := range map[string]string{
		"": "",
		"--mirror=s3://evidence/fleet --mirror-endpoint=https://s3.example.org --mirror-lock=compliance --mirror-lock-for=24h": "",
		"--mirror=https://mirror.example.org/evidence --mirror-authorization-file=header":                                      "",
		"--mirror=mirror.example.org":                             `URL is "mirror.example.org"`,
		"--mirror=s3://":                                          "must be s3://HOST/PATH",
		"--mirror-endpoint=https://s3.example.org":                "needs --mirror s3://BUCKET/PREFIX",
		"--mirror=https://m.example.org --mirror-lock=compliance": "needs --mirror s3://BUCKET/PREFIX",
		"--mirror=s3://evidence --mirror-lock=compliance":         "must be given together",
		"--mirror=s3://evidence --mirror-lock-for=24h":            "must be given together",
		"--mirror=s3://evidence --mirror-lock=legal":              "must be governance or compliance",
		"--mirror=s3://evidence --mirror-authorization-file=h":    "credentials for s3 are in AWS_ACCESS_KEY_ID",
		"--mirror-authorization-file=h":                           "needs --mirror",
		"--mirror-ca-file=" + nothing:                             "needs --mirror",
		"--mirror=s3://evidence --mirror-ca-file=" + nothing:      "has no certificate",
	} {
		var o mirrorOptions
		flags := pflag.NewFlagSet("seal", pflag.ContinueOnError)
		o.flags(flags)
		if err := flags.Parse(strings.Fields(args)); err != nil {
			t.Fatal(err)
		}
		m, err := o.open("", slog.New(slog.DiscardHandler))
		switch {
		case want == "" && (err != nil || (m == nil) != (args == "")):
			t.Errorf("%q: %v, %v", args, m, err)
		case want != "" && (err == nil || !strings.Contains(err.Error(), want)):
			t.Errorf("%q: %v; must say %q", args, err, want)
		}
	}
}
