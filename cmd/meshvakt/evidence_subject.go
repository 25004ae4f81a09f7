package main

import (
	"bytes"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/meshvakt/meshvakt/internal/evidence/keyring"
	"github.com/meshvakt/meshvakt/internal/evidence/record"
	"github.com/meshvakt/meshvakt/internal/evidence/verify"
)

type evidenceSubjectFlags struct {
	trust    trustFlags
	name     string
	groups   []string
	keyFiles []string

	fromCluster bool
	reason      string
	cluster     preflightFlags // of which kubeconfig, context, ownNamespace and timeout
	secret      string
}

func newEvidenceSubject() *cobra.Command {
	var f evidenceSubjectFlags
	cmd := &cobra.Command{
		Use:   "subject INPUT... --name USER (--from-cluster --reason TEXT | --key-file FILE)",
		Short: "List the records that hold a person's pseudonym",
		Long: `Subject answers a person who asks what is held about them (article 15 of the
GDPR): it makes the pseudonym of a user from the key of a period, and prints each
record in which it stands, as meshvakt evidence inspect does.

Whoever runs it finds out what others have done, so that it is to be recorded
itself. With --from-cluster the keys are read from the Secret in the cluster, and
nothing is printed before a replica of Meshvakt has recorded who has looked, why,
in which logs, and how many records were found; not about whom. It takes the rights
to get that Secret, and to create and get events.k8s.io in its namespace. Who it
was is what the API server says to the command; that the Secret was read is in the
API server's audit log, whoever read it.

With --key-file the keys come from files: entries of the Secret meshvakt-evidence,
as their 32 bytes or in base64 as kubectl prints them. Then nothing is recorded;
do that elsewhere, or let it be. Each shard has a key of its period, so --key-file
may be repeated; shards whose key is not given are named, as are those whose key no
longer exists.

Exit status: as for meshvakt evidence inspect, and 2 where a key is not given.`,
		RunE: func(cmd *cobra.Command, args []string) error { return usage(cmd, f.run(cmd, args)) },
	}
	flags := cmd.Flags()
	f.trust.add(flags)
	flags.StringVar(&f.name, "name", "", "the user, as the API server names them")
	flags.StringArrayVar(&f.groups, "group", nil, "a group of the user, to be looked for too; repeatable")
	flags.StringArrayVar(&f.keyFiles, "key-file", nil, "file with a key of pseudonyms; repeatable")
	flags.BoolVar(&f.fromCluster, "from-cluster", false, "read the keys from the Secret in the cluster, and have that recorded")
	flags.StringVar(&f.reason, "reason", "", "why it is looked up, for the record, such as the number of the request; not the name of the person")
	flags.StringVar(&f.cluster.kubeconfig, "kubeconfig", "", "kubeconfig file for --from-cluster; default: as kubectl finds it")
	flags.StringVar(&f.cluster.context, "context", "", "context of the kubeconfig; default: its current one")
	flags.StringVar(&f.cluster.ownNamespace, "meshvakt-namespace", "meshvakt-system", "namespace of the Secret")
	flags.StringVar(&f.secret, "secret", "meshvakt-evidence", "name of the Secret")
	flags.DurationVar(&f.cluster.timeout, "timeout", 2*time.Minute, "how long the cluster may take to hand out the keys, and to record that")
	return cmd
}

func (f *evidenceSubjectFlags) check() error {
	switch {
	case f.name == "":
		return errors.New("--name must be given")
	case f.fromCluster == (len(f.keyFiles) > 0):
		return errors.New("one of --from-cluster and --key-file must be given")
	case f.fromCluster != (f.reason != ""):
		return errors.New("--reason goes with --from-cluster, which needs it")
	}
	return nil
}

func (f *evidenceSubjectFlags) run(cmd *cobra.Command, inputs []string) error {
	if err := f.check(); err != nil {
		return err
	}
	var cluster *keyCluster
	var keys []record.Key
	var err error
	if f.fromCluster {
		if cluster, err = f.openCluster(cmd.Context()); err != nil {
			return err
		}
		keys = cluster.keys()
	}
	for _, path := range f.keyFiles {
		key, err := readPseudonymKey(path)
		if err != nil {
			return err
		}
		keys = append(keys, key)
	}
	search := newSubjectSearch(cmd, f.name, f.groups, keys)
	trust, err := f.trust.trust()
	if err != nil {
		return err
	}
	result, err := walkEvidence(cmd.Context(), inputs, trust, search.look)
	if err != nil {
		return err
	}
	if cluster != nil && len(search.shards) > 0 {
		where, err := cluster.announce(cmd.Context(), keyring.Use{Reason: f.reason, Shards: search.shards}, f.cluster.timeout)
		if err != nil {
			return err // and what was found stays untold
		}
		fmt.Fprintf(cmd.ErrOrStderr(), "meshvakt: recorded by %s\n", where)
	}
	if _, err := cmd.OutOrStdout().Write(search.found.Bytes()); err != nil {
		return fmt.Errorf("write what was found: %w", err)
	}
	fmt.Fprintf(cmd.ErrOrStderr(), "%d records\n", search.n)
	if cluster == nil {
		fmt.Fprintln(cmd.ErrOrStderr(), "meshvakt: nothing has recorded this; --from-cluster does")
	}
	if err := reportLogs(cmd, result); err != nil {
		return err
	}
	if len(search.without) > 0 {
		return exitCode(2)
	}
	return nil
}

// subjectSearch goes through records and keeps those about a person until they may be shown.
type subjectSearch struct {
	wanted  map[string][]string // pseudonyms by the ID of the key
	stderr  io.Writer
	without map[string]bool
	found   bytes.Buffer
	shards  []keyring.Found // those that were searched, in their order
	n       uint64
}

func newSubjectSearch(cmd *cobra.Command, name string, groups []string, keys []record.Key) *subjectSearch {
	s := &subjectSearch{wanted: map[string][]string{}, stderr: cmd.ErrOrStderr(), without: map[string]bool{}}
	for _, key := range keys {
		p := record.NewPseudonymiser(key)
		list := []string{p.Subject(name).ID}
		for _, g := range groups {
			list = append(list, p.Group(g))
		}
		s.wanted[key.ID()] = list
	}
	return s
}

func (s *subjectSearch) look(origin, key string, r record.Record) error {
	list, known := s.wanted[key]
	if !known {
		if !s.without[origin] {
			s.without[origin] = true
			fmt.Fprintf(s.stderr, "meshvakt: %s has pseudonyms of key %s, which is not given\n", origin, key)
		}
		return nil
	}
	if n := len(s.shards); n == 0 || s.shards[n-1].Origin != origin {
		s.shards = append(s.shards, keyring.Found{Origin: origin, Key: key})
	}
	for _, pseudonym := range list {
		mentioned, err := verify.Mentions(r, pseudonym)
		if err != nil {
			return err
		}
		if mentioned {
			s.n++
			s.shards[len(s.shards)-1].N++
			text, err := verify.Readable(origin, r)
			if err != nil {
				return err
			}
			_, err = fmt.Fprintln(&s.found, text)
			return err
		}
	}
	return nil
}

// readPseudonymKey takes the bytes of a key, or their base64.
func readPseudonymKey(path string) (record.Key, error) {
	text, err := readBounded(path, 1<<10)
	if err != nil {
		return record.Key{}, err
	}
	if len(text) == len(record.Key{}) {
		return record.Key(text), nil
	}
	raw, err := base64.StdEncoding.DecodeString(strings.TrimSpace(string(text)))
	if err != nil || len(raw) != len(record.Key{}) {
		return record.Key{}, fmt.Errorf("--key-file %s holds no key; must be 32 bytes, or their base64", path)
	}
	return record.Key(raw), nil
}
