package main

import (
	"errors"
	"fmt"
	"regexp"
	"strings"
	"time"
)

// A Version is one build's in three spellings.
type Version struct {
	Program string // what `curfew version` prints: what git describe said, or the caller
	Package string // for deb and rpm: no hyphen, and sorted as it should be by both
	Epoch   time.Time
}

var (
	tagged = regexp.MustCompile(`^v?(\d+(?:\.\d+)*)(?:-([a-z]+\.?\d*))?(?:-(\d+)-g([0-9a-f]+))?(-dirty)?$`)
	bare   = regexp.MustCompile(`^([0-9a-f]{7,40})(-dirty)?$`)
)

// ParseVersion maps what `git describe --tags --always --dirty` says:
//
//	v1.2.3               1.2.3
//	v1.2.3-rc1           1.2.3~rc1                  before 1.2.3
//	v1.2.3-4-gabcdef1    1.2.3+4.gabcdef1           after 1.2.3, before 1.2.4
//	abcdef1              0~git20261129.abcdef1      before everything that has a tag
//
// and appends +dirty to what was built from an edited tree.
func ParseVersion(described string, commit time.Time) (Version, error) {
	v := Version{Program: described, Epoch: commit.UTC()}
	dirty := func(mark string) string { return strings.Replace(mark, "-", "+", 1) }
	if m := tagged.FindStringSubmatch(described); m != nil && (strings.Contains(m[1], ".") || described[0] == 'v') {
		if m[2] == "dirty" { // which looks like what comes before a release
			m[2], m[5] = "", "-dirty"
		}
		v.Package = m[1]
		if m[2] != "" {
			v.Package += "~" + m[2]
		}
		if m[3] != "" {
			v.Package += "+" + m[3] + ".g" + m[4]
		}
		v.Package += dirty(m[5])
		return v, nil
	}
	if m := bare.FindStringSubmatch(described); m != nil {
		v.Package = fmt.Sprintf("0~git%s.%s%s", v.Epoch.Format("20060102"), m[1], dirty(m[2]))
		return v, nil
	}
	return v, fmt.Errorf("%w: %q is no version: want a tag such as v1.2.3, v1.2.3-rc1, or what git describe says", errUsage, described)
}

var errUsage = errors.New("usage")
