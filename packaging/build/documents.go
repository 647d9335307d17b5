package main

import (
	"bytes"
	"cmp"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/cobra/doc"

	"github.com/curfew-access/curfew/internal/agentcli"
	"github.com/curfew-access/curfew/internal/cli"
	"github.com/curfew-access/curfew/internal/cpcli"
)

// license is what rpm calls the terms in packaging/copyright.
const license = "LicenseRef-Curfew"

// Debian's packages point to the texts that every Debian host has; in an rpm they stand in full, in a
// file that here has an ending of its own.
const (
	fullTerms = ".full"
	common    = "The Apache License, version 2.0: /usr/share/common-licenses/Apache-2.0\n"
)

var apache = regexp.MustCompile(
	`(?s)[ \t]*Apache License\s+Version 2\.0, January 2004.*?END OF TERMS AND CONDITIONS\n` +
		`(?:\s+APPENDIX: How to apply.*?limitations under the License\.\n?)?`)

// documents is a folder that looks like the root of a host with a package's documents in it.
func (b Build) documents(arch, name string) string {
	return filepath.Join(b.work, "doc-"+arch, name)
}

// document writes what packages hold beside what runs.
func (b Build) document(ctx context.Context, arch string, packages []Package) error {
	for _, p := range packages {
		root := b.documents(arch, p.Name)
		rights, err := b.copyright(ctx, arch, p)
		if err != nil {
			return err
		}
		folder := "/usr/share/doc/" + p.Name
		if err := put(root+folder+"/copyright"+fullTerms, rights); err != nil {
			return err
		}
		if err := put(root+folder+"/copyright", apache.ReplaceAll(rights, []byte(common))); err != nil {
			return err
		}
		// deb-changelog(5) wants RFC 5322's date.
		change := fmt.Sprintf("%s (%s-%s) unstable; urgency=medium\n\n  * Built from %s; see %s.\n\n -- %s  %s\n",
			p.Name, b.Version.Package, revision, b.Version.Program, homepage, maintainer,
			b.Version.Epoch.Format("Mon, 02 Jan 2006 15:04:05 -0700"))
		if err := put(root+folder+"/changelog.Debian.gz", squeeze([]byte(change))); err != nil {
			return err
		}
		if err := b.overrides(root, p.Name); err != nil {
			return err
		}
		if err := b.manuals(root, p.Name); err != nil {
			return fmt.Errorf("manual pages of %s: %w", p.Name, err)
		}
	}
	return nil
}

// overrides writes what lintian is told to pass over, with the reasons: packaging/deb/lintian-overrides
// for all packages, packaging/deb/NAME.lintian-overrides for one.
func (b Build) overrides(root, name string) error {
	text, err := os.ReadFile(filepath.Join(b.Top, "packaging/deb/lintian-overrides"))
	if err != nil {
		return err
	}
	own, err := os.ReadFile(filepath.Join(b.Top, "packaging/deb", name+".lintian-overrides"))
	if err != nil && !os.IsNotExist(err) {
		return err
	}
	return put(root+"/usr/share/lintian/overrides/"+name, append(text, own...))
}

// commands are the trees that pages and completions are written from, by package and program.
var commands = map[string]*cobra.Command{
	"curfew": cli.Root(), "curfew-agent": agentcli.Root(), "curfew-controlplane": cpcli.Root(),
}

// manuals writes a package's manual pages and completions: of a command from the command itself, other
// pages from packaging/man/PACKAGE.
func (b Build) manuals(root, name string) error {
	written, err := filepath.Glob(filepath.Join(b.Top, "packaging/man", name, "*"))
	if err != nil {
		return err
	}
	made := filepath.Join(root, "man")
	if c := commands[name]; c != nil {
		if err := b.generated(c, root, made); err != nil {
			return err
		}
		pages, err := filepath.Glob(filepath.Join(made, "*"))
		if err != nil {
			return err
		}
		written = append(written, pages...)
	}
	for _, page := range written {
		text, err := os.ReadFile(page)
		if err != nil {
			return err
		}
		place := fmt.Sprintf("/usr/share/man/man%s/%s.gz", path.Ext(page)[1:], path.Base(page))
		if err := put(root+place, squeeze(text)); err != nil {
			return err
		}
	}
	return os.RemoveAll(made)
}

// Where completions of zsh lie on Debian; elsewhere it is zshSite.
const (
	zshDebian = "/usr/share/zsh/vendor-completions/"
	zshSite   = "/usr/share/zsh/site-functions/"
)

func (b Build) generated(c *cobra.Command, root, made string) error {
	if err := os.MkdirAll(made, 0o755); err != nil {
		return err
	}
	c.DisableAutoGenTag = true
	err := doc.GenManTree(c, &doc.GenManHeader{
		Section: "1", Source: "Curfew", Manual: "Curfew Manual", Date: &b.Version.Epoch,
	}, made)
	if err != nil {
		return err
	}
	for place, write := range map[string]func(io.Writer) error{
		"/usr/share/bash-completion/completions/" + c.Name():         func(w io.Writer) error { return c.GenBashCompletionV2(w, true) },
		zshDebian + "_" + c.Name():                                   c.GenZshCompletion,
		"/usr/share/fish/vendor_completions.d/" + c.Name() + ".fish": func(w io.Writer) error { return c.GenFishCompletion(w, true) },
	} {
		var text bytes.Buffer
		if err := write(&text); err != nil {
			return err
		}
		if err := put(root+place, text.Bytes()); err != nil {
			return err
		}
	}
	return nil
}

// copyright is packaging/copyright, followed by the terms of everything that is linked into the
// package's programs: they ask to be where the programs are.
func (b Build) copyright(ctx context.Context, arch string, p Package) ([]byte, error) {
	own, err := os.ReadFile(filepath.Join(b.Top, "packaging/copyright"))
	if err != nil {
		return nil, err
	}
	text := bytes.NewBuffer(own)
	var mains []string
	for _, f := range p.Files {
		if built, ok := strings.CutPrefix(f.Source, "bin/"); ok && slices.Contains(programs, built) {
			mains = append(mains, "./cmd/"+built)
		}
	}
	if len(mains) == 0 {
		return text.Bytes(), nil
	}
	list, err := output(ctx, b.Top, append([]string{
		"env", "CGO_ENABLED=0", "GOARCH=" + arch, "go", "list", "-deps", "-f",
		"{{with .Module}}{{if not .Main}}{{.Path}} {{.Version}} {{.Dir}}{{end}}{{end}}",
	}, mains...)...)
	if err != nil {
		return nil, err
	}
	goroot, err := output(ctx, b.Top, "go", "env", "GOVERSION", "GOROOT")
	if err != nil {
		return nil, err
	}
	lines := strings.Split(list, "\n")
	slices.Sort(lines)
	lines = append(slices.Compact(lines), "Go "+strings.ReplaceAll(goroot, "\n", " "))
	// Many share one text to the letter.
	type terms struct {
		who  []string
		text []byte
	}
	byText := make(map[[32]byte]*terms)
	for _, line := range lines {
		fields := strings.Fields(line)
		if len(fields) != 3 {
			continue
		}
		files, err := licenses(fields[2])
		if err != nil {
			return nil, err
		}
		if len(files) == 0 {
			return nil, fmt.Errorf("module %s %s has no licence: it cannot be given to others", fields[0], fields[1])
		}
		for _, f := range files {
			sum := sha256.Sum256(f)
			if byText[sum] == nil {
				byText[sum] = &terms{text: f}
			}
			byText[sum].who = append(byText[sum].who, fields[0]+" "+fields[1])
		}
	}
	all := make([]*terms, 0, len(byText))
	for _, t := range byText {
		all = append(all, t)
	}
	slices.SortFunc(all, func(a, b *terms) int {
		return cmp.Or(strings.Compare(a.who[0], b.who[0]), bytes.Compare(a.text, b.text))
	})
	for _, t := range all {
		fmt.Fprintf(text, "\n%s\n\nThis package contains %s, under these terms:\n\n%s\n",
			strings.Repeat("-", 78), strings.Join(t.who, ",\n "), bytes.TrimSpace(t.text))
	}
	return text.Bytes(), nil
}

// licenses are the texts at the top of a module that say its terms.
func licenses(dir string) ([][]byte, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	var all [][]byte
	for _, e := range entries {
		name := strings.ToUpper(e.Name())
		if !e.Type().IsRegular() || !slices.ContainsFunc([]string{"LICENSE", "LICENCE", "COPYING", "NOTICE", "PATENTS"},
			func(prefix string) bool { return strings.HasPrefix(name, prefix) }) {
			continue
		}
		text, err := os.ReadFile(filepath.Join(dir, e.Name()))
		if err != nil {
			return nil, err
		}
		all = append(all, text)
	}
	return all, nil
}

func squeeze(text []byte) []byte {
	var out bytes.Buffer
	w, err := gzip.NewWriterLevel(&out, gzip.BestCompression)
	if err == nil {
		_, err = w.Write(text)
	}
	if err == nil {
		err = w.Close()
	}
	if err != nil {
		panic(err) // a buffer takes everything, and the level is one
	}
	return out.Bytes()
}

func put(path string, text []byte) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	return os.WriteFile(path, text, fs.FileMode(0o644))
}
