package main

import (
	"bufio"
	"encoding/base64"
	"errors"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/meshvakt/meshvakt/internal/evidence/record"
	"github.com/meshvakt/meshvakt/internal/evidence/verify"
)

type evidenceSubjectFlags struct {
	trust    trustFlags
	name     string
	groups   []string
	keyFiles []string
}

func newEvidenceSubject() *cobra.Command {
	var f evidenceSubjectFlags
	cmd := &cobra.Command{
		Use:   "subject INPUT... --name USER --key-file FILE",
		Short: "List the records that hold a person's pseudonym",
		Long: `Subject answers a person who asks what is held about them (article 15 of the
GDPR): it makes the pseudonym of a user from the key of a period, and prints each
record in which it stands, as meshvakt evidence inspect does.

FILE has a key of pseudonyms: an entry of the Secret meshvakt-evidence, as its 32
bytes or in base64 as kubectl prints it. Each shard has a key of its period, so
--key-file may be repeated; shards whose key is not given are named, as are those
whose key no longer exists.

Whoever runs it finds out what others have done. That is to be recorded, and by
whom it was asked for; the command writes nothing.

Exit status: as for meshvakt evidence inspect, and 2 where a key is not given.`,
		RunE: func(cmd *cobra.Command, args []string) error { return usage(cmd, f.run(cmd, args)) },
	}
	flags := cmd.Flags()
	f.trust.add(flags)
	flags.StringVar(&f.name, "name", "", "the user, as the API server names them")
	flags.StringArrayVar(&f.groups, "group", nil, "a group of the user, to be looked for too; repeatable")
	flags.StringArrayVar(&f.keyFiles, "key-file", nil, "file with a key of pseudonyms; repeatable")
	return cmd
}

func (f *evidenceSubjectFlags) run(cmd *cobra.Command, inputs []string) error {
	if f.name == "" || len(f.keyFiles) == 0 {
		return errors.New("--name and --key-file must be given")
	}
	wanted := map[string][]string{} // pseudonyms by the ID of the key
	for _, path := range f.keyFiles {
		key, err := readPseudonymKey(path)
		if err != nil {
			return err
		}
		p := record.NewPseudonymiser(key)
		list := []string{p.Subject(f.name).ID}
		for _, g := range f.groups {
			list = append(list, p.Group(g))
		}
		wanted[key.ID()] = list
	}
	trust, err := f.trust.trust()
	if err != nil {
		return err
	}
	out := bufio.NewWriter(cmd.OutOrStdout())
	n, without := 0, map[string]bool{}
	result, err := walkEvidence(cmd.Context(), inputs, trust, func(origin, key string, r record.Record) error {
		list, known := wanted[key]
		if !known {
			if !without[origin] {
				without[origin] = true
				fmt.Fprintf(cmd.ErrOrStderr(), "meshvakt: %s has pseudonyms of key %s, which is not given\n", origin, key)
			}
			return nil
		}
		for _, pseudonym := range list {
			mentioned, err := verify.Mentions(r, pseudonym)
			if err != nil {
				return err
			}
			if mentioned {
				n++
				text, err := verify.Readable(origin, r)
				if err != nil {
					return err
				}
				_, err = fmt.Fprintln(out, text)
				return err
			}
		}
		return nil
	})
	if err = errors.Join(err, out.Flush()); err != nil {
		return err
	}
	fmt.Fprintf(cmd.ErrOrStderr(), "%d records\n", n)
	if err := reportLogs(cmd, result); err != nil {
		return err
	}
	if len(without) > 0 {
		return exitCode(2)
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
