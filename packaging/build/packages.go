package main

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// A Package is one in both worlds.
type Package struct {
	Name, Summary, Description string
	Section                    string // Debian's
	Deb, RPM                   Needs
	Files                      []File
}

// Needs are what a package wants of others, by the names of its kind; @version@ is this build's.
type Needs struct{ Depends, Recommends []string }

// A File is one line of packaging/files.
type File struct {
	Kind   string // all, deb or rpm
	Mode   os.FileMode
	Source string // bin/ and doc/ are what this build made
	Place  string
}

// descriptions are all packages, but for their files. The C modules were built against Debian 12; the
// versions of libc are those whose symbols they use, which a test holds.
var descriptions = []Package{
	{
		Name: "curfew", Section: "admin",
		Summary: "Just-in-time access to Linux hosts: the command of its users",
		Description: "Curfew gives a person access to a Linux host for a stated reason and a\n" +
			"limited time, and takes all of it back on time. With this command people\n" +
			"ask for access, approve what others ask, use it and hand it back.",
		Deb: Needs{Recommends: []string{"openssh-client"}},
		RPM: Needs{Recommends: []string{"openssh-clients"}},
	},
	{
		Name: "curfew-controlplane", Section: "admin",
		Summary: "Just-in-time access to Linux hosts: the control plane",
		Description: "Curfew gives a person access to a Linux host for a stated reason and a\n" +
			"limited time, and takes all of it back on time. The control plane decides\n" +
			"requests, seals grants, streams them to hosts and keeps the trail.",
		Deb: Needs{Depends: []string{"adduser", "systemd"}},
		RPM: Needs{Depends: []string{"/bin/sh", "systemd"}},
	},
	{
		Name: "curfew-agent", Section: "admin",
		Summary: "Just-in-time access to Linux hosts: the agent of a host",
		Description: "Curfew gives a person access to a Linux host for a stated reason and a\n" +
			"limited time, and takes all of it back on time. The agent verifies grants\n" +
			"on a host, opens what was approved, and ends it with every process that\n" +
			"was born under it. An installed agent observes: it changes nobody's access\n" +
			"until an administrator says so.",
		Deb: Needs{
			Depends: []string{
				"libnss-curfew (= @version@)", "libpam-curfew (= @version@)",
				"libpam-systemd", "openssh-server", "sudo (>= 1.9.5)", "systemd (>= 247)",
			},
		},
		RPM: Needs{
			Depends: []string{
				"/bin/sh", "diffutils", "libnss-curfew = @version@", "libpam-curfew = @version@",
				"openssh-server", "sudo >= 1.9.5", "systemd >= 247",
			},
		},
	},
	{
		Name: "libpam-curfew", Section: "admin",
		Summary: "Just-in-time access to Linux hosts: the PAM module",
		Description: "Curfew gives a person access to a Linux host for a stated reason and a\n" +
			"limited time, and takes all of it back on time. This module asks the\n" +
			"host's agent at each login and each elevation. People whom Curfew does not\n" +
			"manage pass it without a question.",
		Deb: Needs{Depends: []string{
			"libc6 (>= 2.28)", "libpam-runtime (>= 1.0.1-6)", "libpam0g (>= 1.4.0)",
			"usr-is-merged | usrmerge",
		}},
		RPM: Needs{Depends: []string{
			"/bin/sh", "libc.so.6(GLIBC_2.28)(64bit)", "libpam.so.0(LIBPAM_EXTENSION_1.0)(64bit)",
		}},
	},
	{
		Name: "libnss-curfew", Section: "admin",
		Summary: "Just-in-time access to Linux hosts: the name service module",
		Description: "Curfew gives a person access to a Linux host for a stated reason and a\n" +
			"limited time, and takes all of it back on time. This module knows the\n" +
			"accounts of live grants, which stand in no file of the host's. It reads\n" +
			"one local file and asks nobody.",
		Deb: Needs{Depends: []string{"libc6 (>= 2.17)"}},
		RPM: Needs{Depends: []string{"/bin/sh", "diffutils", "gawk", "libc.so.6(GLIBC_2.17)(64bit)"}},
	},
}

// packages reads packaging/files into the descriptions, and keeps those that are wanted.
func (b Build) packages() ([]Package, error) {
	table, err := os.ReadFile(filepath.Join(b.Top, "packaging/files"))
	if err != nil {
		return nil, err
	}
	files := make(map[string][]File)
	for line := range strings.Lines(string(table)) {
		fields := strings.Fields(line)
		if len(fields) == 0 || fields[0] == "#" {
			continue
		}
		var f File
		if len(fields) != 5 {
			return nil, fmt.Errorf("packaging/files: want five fields: %q", line)
		}
		if _, err := fmt.Sscanf(fields[2], "%o", &f.Mode); err != nil {
			return nil, fmt.Errorf("packaging/files: mode %q: %w", fields[2], err)
		}
		f.Kind, f.Source, f.Place = fields[1], fields[3], fields[4]
		files[fields[0]] = append(files[fields[0]], f)
	}
	var all []Package
	for _, p := range descriptions {
		p.Files = files[p.Name]
		delete(files, p.Name)
		if len(b.Only) == 0 || slices.Contains(b.Only, p.Name) {
			all = append(all, p)
		}
	}
	if len(files) > 0 {
		return nil, fmt.Errorf("packaging/files names packages without description: %v", slices.Collect(maps.Keys(files)))
	}
	for _, name := range b.Only {
		if !slices.ContainsFunc(all, func(p Package) bool { return p.Name == name }) {
			return nil, fmt.Errorf("%w: there is no package %q", errUsage, name)
		}
	}
	return all, nil
}

// content is a file as nfpm's configuration has it.
type content struct {
	Source      string `json:"src"`
	Destination string `json:"dst"`
	Type        string `json:"type,omitempty"`
	Info        struct {
		Mode  os.FileMode `json:"mode"`
		Owner string      `json:"owner"`
		Group string      `json:"group"`
		MTime string      `json:"mtime"`
	} `json:"file_info"`
}

const (
	maintainer = "Curfew maintainers <curfew-access@users.noreply.github.com>"
	homepage   = "https://github.com/curfew-access/curfew"
	revision   = "1"
)

// pack has nfpm write one package and returns its path.
func (b Build) pack(ctx context.Context, p Package, kind, arch string) (string, error) {
	needs, lib, file := p.Deb, "/usr/lib/"+machines[arch].triplet,
		fmt.Sprintf("%s_%s-%s_%s.deb", p.Name, b.Version.Package, revision, arch)
	if kind == "rpm" {
		needs, lib, file = p.RPM, "/usr/lib64",
			fmt.Sprintf("%s-%s-%s.%s.rpm", p.Name, b.Version.Package, revision, machines[arch].rpm)
	}
	contents, err := b.contents(p, kind, arch, lib)
	var triggers []string
	if slices.ContainsFunc(p.Files, func(f File) bool { return strings.HasPrefix(f.Place, "@lib@/lib") }) {
		triggers = []string{"ldconfig"}
	}
	if err != nil {
		return "", err
	}
	at := func(names []string) []string {
		out := make([]string, len(names))
		for i, n := range names {
			out[i] = strings.ReplaceAll(n, "@version@", b.Version.Package+"-"+revision)
		}
		return out
	}
	// nfpm reads YAML, of which JSON is a part.
	config := map[string]any{
		"name": p.Name, "arch": arch, "platform": "linux", "version_schema": "none",
		"version": b.Version.Package, "release": revision, "section": p.Section, "priority": "optional",
		"maintainer": maintainer, "homepage": homepage, "disable_globbing": true,
		"description": p.Summary + "\n" + p.Description, "mtime": b.time(),
		"depends": at(needs.Depends), "recommends": at(needs.Recommends), "contents": contents,
		"scripts": b.scripts(p.Name, kind),
		"deb":     map[string]any{"triggers": map[string][]string{"activate_noawait": triggers}},
		"rpm": map[string]any{
			"arch": machines[arch].rpm, "summary": p.Summary, "buildhost": "localhost", "packager": maintainer,
		},
	}
	if kind == "rpm" {
		config["description"], config["license"] = p.Description, license
	}
	text, err := json.MarshalIndent(config, "", "  ")
	if err != nil {
		return "", err
	}
	name := filepath.Join(b.work, file+".json")
	if err := os.WriteFile(name, text, 0o644); err != nil {
		return "", err
	}
	out, err := filepath.Abs(filepath.Join(b.Out, file))
	if err != nil {
		return "", err
	}
	b.Say(file)
	return out, b.command(ctx, nil, b.nfpm(), "package", "--config", name, "--packager", kind, "--target", out)
}

func (b Build) nfpm() string { return filepath.Join(b.Top, "bin/nfpm") }

func (b Build) time() string { return b.Version.Epoch.Format("2006-01-02T15:04:05Z07:00") }

// contents are a package's files, with those that document it.
func (b Build) contents(p Package, kind, arch, lib string) ([]content, error) {
	var all []content
	add := func(source, place string, mode os.FileMode) {
		c := content{Source: source, Destination: place}
		if strings.HasPrefix(place, "/etc/") {
			c.Type = "config|noreplace"
		}
		c.Info.Mode, c.Info.Owner, c.Info.Group, c.Info.MTime = mode, "root", "root", b.time()
		all = append(all, c)
	}
	for _, f := range p.Files {
		if f.Kind != "all" && f.Kind != kind {
			continue
		}
		source := filepath.Join(b.Top, f.Source)
		if built, ok := strings.CutPrefix(f.Source, "bin/"); ok {
			source = filepath.Join(b.bin(arch), built)
		}
		add(source, strings.ReplaceAll(f.Place, "@lib@", lib), f.Mode)
	}
	documents := b.documents(arch, p.Name)
	err := filepath.WalkDir(documents, func(path string, d os.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		place, full := strings.CutSuffix(strings.TrimPrefix(path, documents), fullTerms)
		if kind == "rpm" {
			if strings.HasPrefix(place, "/usr/share/lintian/") || strings.HasSuffix(place, "changelog.Debian.gz") {
				return nil
			}
			if !full && strings.HasSuffix(place, "/copyright") {
				return nil
			}
			if file, ok := strings.CutPrefix(place, zshDebian); ok {
				place = zshSite + file
			}
		} else if full {
			return nil
		}
		add(path, place, 0o644)
		if kind == "rpm" && (strings.Contains(place, "/man/") || strings.Contains(place, "/doc/")) {
			all[len(all)-1].Type = "doc"
		}
		return nil
	})
	return all, err
}

// scripts are the maintainer scripts of a package that the tree has: packaging/KIND/NAME.WHEN.
func (b Build) scripts(name, kind string) map[string]string {
	when := map[string]map[string]string{
		"deb": {"preinst": "preinstall", "postinst": "postinstall", "prerm": "preremove", "postrm": "postremove"},
		"rpm": {"pre": "preinstall", "post": "postinstall", "preun": "preremove", "postun": "postremove"},
	}
	found := make(map[string]string)
	for suffix, field := range when[kind] {
		path := filepath.Join(b.Top, "packaging", kind, name+"."+suffix)
		if _, err := os.Stat(path); err == nil {
			found[field] = path
		}
	}
	return found
}
