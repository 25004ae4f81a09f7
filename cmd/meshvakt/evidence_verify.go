package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"runtime/debug"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/meshvakt/meshvakt/internal/evidence/verify"
)

// The exit statuses of evidence verify, beside 0 and those that verify.Result has.
const exitUsage exitCode = 4

const (
	// maxProof has room for the signatures of many witnesses.
	maxProof = 1 << 20
	// patience is how long a server of a log may take for one file.
	patience = time.Minute
)

// trustFlags say whose signatures are believed.
type trustFlags struct {
	policy string
	keys   []string
	own    bool
}

func (f *trustFlags) add(flags *pflag.FlagSet) {
	flags.StringVar(&f.policy, "policy", "", "file with a C2SP tlog-policy: keys of logs, keys of witnesses, how many must have signed")
	flags.StringArrayVar(&f.keys, "key", nil, "verifier key of a log; repeatable")
	flags.BoolVar(&f.own, "trust-log-key", false, "let claims hold by keys that are known from the logs themselves")
}

func (f *trustFlags) trust() (*verify.Trust, error) {
	var policy []byte
	if f.policy != "" {
		var err error
		if policy, err = os.ReadFile(f.policy); err != nil {
			return nil, fmt.Errorf("--policy: %w", err)
		}
	}
	return verify.NewTrust(policy, f.keys, f.own)
}

// openEvidence opens all inputs. The caller closes what it returns, also with an error.
func openEvidence(inputs []string, client *http.Client) ([]*verify.Source, error) {
	if len(inputs) == 0 {
		return nil, errors.New("no evidence is given; give bundles, directories or URLs of logs")
	}
	var all []*verify.Source
	for _, input := range inputs {
		list, err := verify.Open(input, client)
		all = append(all, list...)
		if err != nil {
			return all, err
		}
	}
	return all, nil
}

func closeEvidence(list []*verify.Source) error {
	var all []error
	for _, s := range list {
		all = append(all, s.Close())
	}
	return errors.Join(all...)
}

type evidenceVerifyFlags struct {
	trust         trustFlags
	audit         auditFlags
	claims        []string
	from, to      string
	inferred      bool
	maxClockError time.Duration
	noDeclared    bool
	output        string
	proof, record string
}

func newEvidenceVerify() *cobra.Command {
	var f evidenceVerifyFlags
	cmd := &cobra.Command{
		Use:   "verify INPUT... [--policy FILE | --key KEY] [--claim CLAIM --from TIME --to TIME]",
		Short: "Tell what logs of evidence prove",
		Long: `Verify reads logs of evidence whole, and tells what they prove. It needs neither a
cluster nor, unless a log is given by its URL, a network.

INPUT is a bundle of one shard (zip), the directory of a log, the directory of a
replica's evidence, or the http or https URL of a log. Of any other directory, such
as a copy of a mirror, it is all that lies below. A claim about a cluster needs the
logs of all its replicas; one without cluster=UID is about all clusters that are
given, and those whose keys are.

Whose logs they are is shown by keys that you have from elsewhere: --policy or
--key. The key of a later shard is believed if the shard before it, which is
given too, announces it. Without them the keys are read from the logs, which
shows that these are whole and not who has written them; claims then hold only
with --trust-log-key.

A claim is as in mtls=STRICT,namespace=payments. Namespace may be repeated, or be
* for all that were guarded; cluster=UID restricts it to one cluster. It holds if
at each instant from --from to --to some replica saw that nothing but STRICT
applied and no pod ran outside of the mesh. Time that nobody saw is INFERRED
where all objects that count were the same before and after, and counts only
with --accept-inferred. Time under an exception proves no claim.

With --audit-log, each record that an API server was told of must be in the logs as
it was told, or the status is 3. If the audit log also has the decisions of the
logs, time that nobody saw is OBSERVED-BY-AUDIT where it tells that nothing came
which could have weakened the namespace and gone again.

With --proof, a record that was handed over with its proof (see meshvakt evidence
prove) is verified instead, by --policy or --key.

Exit status: 0 the logs are whole and all claims hold, 1 a claim is violated, 2 it
cannot be proven, 3 the logs are not whole, 4 the command is wrong or something
cannot be read.`,
		RunE: func(cmd *cobra.Command, args []string) error {
			return usage(cmd, f.run(cmd, args))
		},
	}
	flags := cmd.Flags()
	f.trust.add(flags)
	f.audit.add(flags)
	flags.StringArrayVar(&f.claims, "claim", nil, "what the logs are to prove, as in mtls=STRICT,namespace=payments; repeatable")
	flags.StringVar(&f.from, "from", "", "when the claims begin, as 2026-10-01T00:00:00Z or 2026-10-01")
	flags.StringVar(&f.to, "to", "", "when the claims end")
	flags.BoolVar(&f.inferred, "accept-inferred", false, "let time count in which nobody saw anything and nothing has changed")
	flags.DurationVar(&f.maxClockError, "max-clock-error", defaultClockError, "how wrong a clock may have been for its time to count as seen; one that nothing disciplines counts as 16s")
	flags.BoolVar(&f.noDeclared, "no-declared-clock", false, "go by what kernels say of their clocks alone, and not by what operators declare")
	flags.StringVarP(&f.output, "output", "o", "text", "text or json")
	flags.StringVar(&f.proof, "proof", "", "proof of one record, from meshvakt evidence prove")
	flags.StringVar(&f.record, "record-file", "", "file with the record that --proof is of, as one line")
	return cmd
}

// usage reports an error by the status that stands for it in the evidence commands.
func usage(cmd *cobra.Command, err error) error {
	var code exitCode
	if err == nil || errors.As(err, &code) {
		return err
	}
	fmt.Fprintf(cmd.ErrOrStderr(), "meshvakt: %v\n", err)
	return exitUsage
}

func (f *evidenceVerifyFlags) run(cmd *cobra.Command, inputs []string) (err error) {
	trust, err := f.trust.trust()
	if err != nil {
		return err
	}
	if f.proof != "" || f.record != "" {
		return f.verifyProof(cmd, trust)
	}
	if f.output != "text" && f.output != "json" {
		return fmt.Errorf("--output %q; must be text or json", f.output)
	}
	o := verify.Options{Trust: trust, MaxClockError: f.maxClockError, RefuseDeclared: f.noDeclared}
	if o.Claims, err = f.parseClaims(); err != nil {
		return err
	}
	if o.Audit, err = f.audit.read(); err != nil {
		return err
	}
	r, err := verifyEvidence(cmd.Context(), inputs, o)
	if err != nil {
		return err
	}
	if err := writeResult(cmd.OutOrStdout(), r, f.output); err != nil {
		return err
	}
	if code := r.ExitCode(); code != 0 {
		return exitCode(code)
	}
	return nil
}

// verifyGCPercent: of what is read of a log, all but a few bytes a record is garbage at once. Collecting
// it sooner takes a tenth more of time and leaves more than that of memory to others.
const verifyGCPercent = 30

// verifyEvidence opens, verifies and closes.
func verifyEvidence(ctx context.Context, inputs []string, o verify.Options) (r *verify.Result, err error) {
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(verifyGCPercent)
	}
	err = withEvidence(inputs, func(sources []*verify.Source) error {
		r, err = verify.Verify(ctx, sources, o)
		return err
	})
	return r, err
}

func writeResult(w io.Writer, r *verify.Result, output string) error {
	if output == "text" {
		return r.WriteText(w)
	}
	e := json.NewEncoder(w)
	e.SetIndent("", "  ")
	return e.Encode(r)
}

func (f *evidenceVerifyFlags) parseClaims() ([]verify.Claim, error) {
	if len(f.claims) == 0 {
		if f.from != "" || f.to != "" {
			return nil, errors.New("--from and --to are of claims; give --claim")
		}
		return nil, nil
	}
	from, err := parseTime("--from", f.from)
	if err != nil {
		return nil, err
	}
	to, err := parseTime("--to", f.to)
	if err != nil {
		return nil, err
	}
	var list []verify.Claim
	for _, text := range f.claims {
		c, err := verify.ParseClaim(text, from, to, f.inferred)
		if err != nil {
			return nil, err
		}
		list = append(list, c)
	}
	return list, nil
}

// parseTime reads a time, or a day, which is its beginning in UTC.
func parseTime(flag, text string) (time.Time, error) {
	for _, layout := range []string{time.RFC3339Nano, time.DateOnly} {
		if t, err := time.Parse(layout, text); err == nil {
			return t.UTC(), nil
		}
	}
	return time.Time{}, fmt.Errorf("%s %q; must be a time, as 2026-10-01T00:00:00Z or 2026-10-01", flag, text)
}

func (f *evidenceVerifyFlags) verifyProof(cmd *cobra.Command, trust *verify.Trust) error {
	if f.proof == "" || f.record == "" {
		return errors.New("--proof and --record-file go together")
	}
	proof, err := readBounded(f.proof, maxProof)
	if err != nil {
		return err
	}
	line, err := readBounded(f.record, maxProof)
	if err != nil {
		return err
	}
	p, err := verify.CheckProof(trust, proof, line)
	if err != nil {
		fmt.Fprintf(cmd.ErrOrStderr(), "meshvakt: %v\n", err)
		return exitCode(3)
	}
	_, err = fmt.Fprintf(cmd.OutOrStdout(), "record %s#%d is in the log of %d records, root %s; that no other record matters is not shown\n", p.Origin, p.Seq, p.Size, p.Root)
	return err
}

func readBounded(path string, most int64) ([]byte, error) {
	file, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	text, err := io.ReadAll(io.LimitReader(file, most+1))
	if err = errors.Join(err, file.Close()); err != nil {
		return nil, err
	}
	if int64(len(text)) > most {
		return nil, fmt.Errorf("%s has more than %d bytes", path, most)
	}
	return text, nil
}
