package main

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	"github.com/meshvakt/meshvakt/internal/evidence/seal"
	"github.com/meshvakt/meshvakt/internal/evidence/volume"
)

// sealOptions are the flags of `meshvakt evidence seal`.
type sealOptions struct {
	dir             string
	interval        time.Duration
	listen          string
	policy          string
	witnessTimeout  time.Duration
	witnessRequired bool
	retention       time.Duration
	holdFile        string
	mirror          mirrorOptions
	logLevel        string
	logFormat       string
}

func newEvidenceSeal() *cobra.Command {
	var o sealOptions
	cmd := &cobra.Command{
		Use:   "seal",
		Short: "Seal evidence into signed, tamper-evident logs",
		Long: `Seal the evidence of one replica into signed, tamper-evident logs.

Runs beside the webhook, on the same volume, in a process of its own. What the webhook
has stored in spool/ becomes a transparency log for each quarter in logs/ (C2SP
tlog-tiles), with a signed checkpoint at every --checkpoint-interval. A log that is
over is bundled as bundles/QUARTER.zip for whoever verifies it.

With --witness-policy, checkpoints are cosigned by the witnesses that the file names
(C2SP tlog-policy), and the spool keeps what they have not seen. While they do not
answer, checkpoints are published with the log's own signature alone, unless
--witness-required is given.

With --mirror, all of it is copied as well, to a bucket of S3-compatible object storage
or by PUT to a server: tiles, then the checkpoint that needs them, bundles, tombstones.
Copies lie under the names of the logs, so all replicas of all clusters may have the same
URL. What the mirror has of another log, or more of it than is here, is left alone and
told. Credentials for S3 are taken from AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, from
the file AWS_SHARED_CREDENTIALS_FILE, from a web identity (AWS_WEB_IDENTITY_TOKEN_FILE,
AWS_ROLE_ARN) or from the machine.

It ends with an error, and changes nothing, where log and spool do not belong together.
Exit status: 0 told to end, 2 anything else; start it again then.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			ctx, stop := signal.NotifyContext(cmd.Context(), syscall.SIGINT, syscall.SIGTERM)
			defer stop()
			return o.run(ctx)
		},
	}
	f := cmd.Flags()
	f.StringVar(&o.dir, "dir", "", "directory of the replica's evidence, as in serve --evidence-dir")
	f.DurationVar(&o.interval, "checkpoint-interval", 10*time.Second, "time from one checkpoint to the next")
	f.StringVar(&o.listen, "listen", "", "address of /healthz, /metrics and the logs, read-only, under /logs/QUARTER/ (HTTP); empty for none")
	f.StringVar(&o.policy, "witness-policy", "", "file that names witnesses, their URLs and the quorum (C2SP tlog-policy)")
	f.DurationVar(&o.witnessTimeout, "witness-timeout", 5*time.Second, "how long witnesses are waited for")
	f.BoolVar(&o.witnessRequired, "witness-required", false, "publish no checkpoint that the witnesses have not cosigned")
	f.DurationVar(&o.retention, "retention", 0, "remove a quarter this long after its end, but for a tombstone; 0 keeps all for ever")
	f.StringVar(&o.holdFile, "legal-hold", "", "file that, while it exists, keeps quarters from being removed; what it says is logged")
	o.mirror.flags(f)
	f.StringVar(&o.logLevel, "log-level", "info", "debug, info, warn or error")
	f.StringVar(&o.logFormat, "log-format", "json", "json or text")
	cobra.CheckErr(cmd.MarkFlagRequired("dir"))
	return cmd
}

func (o *sealOptions) run(ctx context.Context) error {
	c, err := o.config()
	if err != nil {
		return err
	}
	s, err := seal.Open(c)
	if err != nil {
		return err
	}
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return s.Run(ctx) })
	if o.listen != "" {
		group.Go(func() error { return o.serve(ctx, s) })
	}
	return errors.Join(group.Wait(), s.Close())
}

func (o *sealOptions) config() (seal.Config, error) {
	log, err := newLogger(o.logLevel, o.logFormat)
	if err != nil {
		return seal.Config{}, err
	}
	switch {
	case o.interval < time.Second:
		return seal.Config{}, fmt.Errorf("--checkpoint-interval: %s; must be 1s or more", o.interval)
	case o.retention < 0:
		return seal.Config{}, fmt.Errorf("--retention: %s; must not be negative", o.retention)
	case o.witnessRequired && o.policy == "":
		return seal.Config{}, errors.New("--witness-required: needs --witness-policy")
	case o.witnessTimeout <= 0:
		return seal.Config{}, fmt.Errorf("--witness-timeout: %s; must be more than 0", o.witnessTimeout)
	}
	clock, err := newClock()
	if err != nil {
		return seal.Config{}, err
	}
	c := seal.Config{
		Dir: volume.Dir(o.dir), Interval: o.interval, Retention: o.retention,
		Now: clock.now, Random: rand.Reader, Log: log,
	}
	if o.policy != "" {
		text, err := os.ReadFile(o.policy)
		if err != nil {
			return seal.Config{}, fmt.Errorf("--witness-policy: %w", err)
		}
		if c.Witnesses, err = seal.ParseWitnesses(text); err != nil {
			return seal.Config{}, fmt.Errorf("--witness-policy %s: %w", o.policy, err)
		}
		c.Witnesses.Timeout, c.Witnesses.Required = o.witnessTimeout, o.witnessRequired
	}
	if o.holdFile != "" {
		c.Hold = func() (string, error) { return readHold(o.holdFile) }
	}
	if c.Mirror, err = o.mirror.open(c.Dir, log); err != nil {
		return seal.Config{}, err
	}
	return c, nil
}

// readHold is the reason of a legal hold: empty where there is none.
func readHold(name string) (string, error) {
	text, err := os.ReadFile(name)
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil
	}
	if err != nil {
		return "", err
	}
	return fmt.Sprintf("%s: %.200q", name, text), nil
}

func (o *sealOptions) serve(ctx context.Context, s *seal.Sealer) error {
	registry := prometheus.NewRegistry()
	registry.MustRegister(seal.NewCollector(s), collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	logs, err := seal.Handler(s, promhttp.HandlerFor(registry, promhttp.HandlerOpts{}))
	if err != nil {
		return err
	}
	var listen net.ListenConfig
	listener, err := listen.Listen(ctx, "tcp", o.listen)
	if err != nil {
		return fmt.Errorf("--listen: %w", err)
	}
	server := &http.Server{Handler: logs, ReadHeaderTimeout: 10 * time.Second, WriteTimeout: time.Minute, IdleTimeout: 2 * time.Minute}
	context.AfterFunc(ctx, func() { _ = server.Close() }) // reads alone, which can be made again
	if err := server.Serve(listener); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serve logs: %w", err)
	}
	return nil
}

func newEvidenceBundle() *cobra.Command {
	var dir, shard, output string
	cmd := &cobra.Command{
		Use:   "bundle",
		Short: "Write the log of a quarter as a zip for whoever verifies it",
		Long: `Write the log of a quarter, as of its last checkpoint, as a zip for whoever verifies
it: tiles, entries, checkpoint, the public key and a manifest. Every record is verified
before. Quarters that are over have such a file in bundles/ already.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			m, err := writeBundle(cmd.Context(), volume.Dir(dir), shard, output)
			if err != nil {
				return err
			}
			fmt.Fprintf(cmd.OutOrStdout(), "%s: %d records of %s\nroot %s\n", output, m.Size, m.Origin, m.Root)
			return nil
		},
	}
	f := cmd.Flags()
	f.StringVar(&dir, "dir", "", "directory of the replica's evidence, as in serve --evidence-dir")
	f.StringVar(&shard, "shard", "", "quarter, as in 2026q4")
	f.StringVarP(&output, "output", "o", "", "file to write")
	for _, name := range []string{"dir", "shard", "output"} {
		cobra.CheckErr(cmd.MarkFlagRequired(name))
	}
	return cmd
}

// writeBundle leaves no file behind that is not whole.
func writeBundle(ctx context.Context, dir volume.Dir, shard, output string) (_ *seal.Manifest, err error) {
	if _, _, err := volume.ParseShard(shard); err != nil {
		return nil, fmt.Errorf("--shard: %w", err)
	}
	f, err := os.CreateTemp(filepath.Dir(output), filepath.Base(output)+".*.tmp")
	if err != nil {
		return nil, fmt.Errorf("write the bundle: %w", err)
	}
	m, err := seal.WriteBundle(ctx, f, dir, shard)
	if err = errors.Join(err, f.Sync(), f.Close()); err == nil {
		err = os.Rename(f.Name(), output)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("write the bundle: %w", err), os.Remove(f.Name()))
	}
	return m, nil
}
