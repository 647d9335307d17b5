package main

import (
	"crypto/sha256"
	"debug/buildinfo"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// A bill says what is in the packages: SPDX 2.3. What is linked into a program stands in the program
// itself, as `go version -m` shows it.
type bill struct {
	Packages  []spdxPackage
	Relations []spdxRelation
	modules   map[string]spdxPackage
}

type spdxPackage struct {
	ID        string         `json:"SPDXID"`
	Name      string         `json:"name"`
	Version   string         `json:"versionInfo"`
	File      string         `json:"packageFileName,omitempty"`
	Download  string         `json:"downloadLocation"`
	Analyzed  bool           `json:"filesAnalyzed"`
	Concluded string         `json:"licenseConcluded"`
	Declared  string         `json:"licenseDeclared"`
	Copyright string         `json:"copyrightText"`
	Checksums []spdxChecksum `json:"checksums,omitempty"`
	Refs      []spdxRef      `json:"externalRefs,omitempty"`
}

type spdxChecksum struct {
	Algorithm string `json:"algorithm"`
	Value     string `json:"checksumValue"`
}

type spdxRef struct {
	Category string `json:"referenceCategory"`
	Type     string `json:"referenceType"`
	Locator  string `json:"referenceLocator"`
}

type spdxRelation struct {
	Of   string `json:"spdxElementId"`
	Is   string `json:"relationshipType"`
	With string `json:"relatedSpdxElement"`
}

const none = "NOASSERTION"

// add enters one package's file and what its programs are made of.
func (l *bill) add(b Build, p Package, arch, file string) error {
	sum, err := sumOf(file)
	if err != nil {
		return err
	}
	id := spdxID("file", filepath.Base(file))
	l.Packages = append(l.Packages, spdxPackage{
		ID: id, Name: p.Name, Version: b.Version.Package, File: filepath.Base(file), Download: none,
		Concluded: none, Declared: none, Copyright: none, Checksums: []spdxChecksum{{"SHA256", sum}},
	})
	l.Relations = append(l.Relations, spdxRelation{"SPDXRef-DOCUMENT", "DESCRIBES", id})
	linked := make(map[string]bool)
	for _, f := range p.Files {
		program, ok := strings.CutPrefix(f.Source, "bin/")
		if !ok || !slices.Contains(programs, program) {
			continue
		}
		info, err := buildinfo.ReadFile(filepath.Join(b.bin(arch), program))
		if err != nil {
			return err
		}
		linked[l.module("stdlib", strings.TrimPrefix(info.GoVersion, "go"))] = true
		for _, m := range info.Deps {
			if m.Replace != nil {
				m = m.Replace
			}
			linked[l.module(m.Path, m.Version)] = true
		}
	}
	for _, m := range slices.Sorted(maps.Keys(linked)) {
		l.Relations = append(l.Relations, spdxRelation{id, "CONTAINS", m})
	}
	return nil
}

func (l *bill) module(path, version string) string {
	if l.modules == nil {
		l.modules = make(map[string]spdxPackage)
	}
	id := spdxID("module", path+"-"+version)
	l.modules[id] = spdxPackage{
		ID: id, Name: path, Version: version, Download: none, Concluded: none, Declared: none, Copyright: none,
		Refs: []spdxRef{{"PACKAGE-MANAGER", "purl", "pkg:golang/" + path + "@" + version}},
	}
	return id
}

// write writes the bill beside the packages. Its namespace, which must be unique, comes from its text.
func (l *bill) write(b Build) error {
	for _, id := range slices.Sorted(maps.Keys(l.modules)) {
		l.Packages = append(l.Packages, l.modules[id])
	}
	parts, err := json.Marshal(l)
	if err != nil {
		return err
	}
	unique := sha256.Sum256(parts)
	text, err := json.MarshalIndent(map[string]any{
		"spdxVersion": "SPDX-2.3", "dataLicense": "CC0-1.0", "SPDXID": "SPDXRef-DOCUMENT",
		"name":              "curfew-" + b.Version.Package,
		"documentNamespace": homepage + "/spdx/" + b.Version.Package + "/" + hex.EncodeToString(unique[:16]),
		"creationInfo":      map[string]any{"created": b.time(), "creators": []string{"Tool: curfew-packaging-build"}},
		"packages":          l.Packages, "relationships": l.Relations,
	}, "", " ")
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(b.Out, "curfew-"+b.Version.Package+".spdx.json"), append(text, '\n'), 0o644)
}

// spdxID makes an identifier of what SPDX allows in one: letters, digits, dots and hyphens.
func spdxID(kind, name string) string {
	return "SPDXRef-" + kind + "-" + strings.Map(func(r rune) rune {
		if r == '.' || r == '-' || r >= '0' && r <= '9' || r >= 'A' && r <= 'Z' || r >= 'a' && r <= 'z' {
			return r
		}
		return '-'
	}, name)
}

// sums writes SHA256SUMS over everything, for sha256sum -c.
func (b Build) sums() error {
	entries, err := os.ReadDir(b.Out)
	if err != nil {
		return err
	}
	var text strings.Builder
	for _, e := range entries {
		sum, err := sumOf(filepath.Join(b.Out, e.Name()))
		if err != nil {
			return err
		}
		fmt.Fprintf(&text, "%s  %s\n", sum, e.Name())
	}
	return os.WriteFile(filepath.Join(b.Out, "SHA256SUMS"), []byte(text.String()), 0o644)
}

func sumOf(path string) (string, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return "", err
	}
	sum := sha256.Sum256(data)
	return hex.EncodeToString(sum[:]), nil
}
