package grant_test

import (
	"strings"
	"testing"

	"github.com/curfew-access/curfew/internal/grant"
	curfewv1 "github.com/curfew-access/curfew/proto/curfew/v1"
)

type rule = curfewv1.SudoRule

func TestSudoRulesThatMeanOneThing(t *testing.T) {
	for _, r := range []*rule{
		{RunAs: "root", All: true},
		{RunAs: "root", Command: "/usr/bin/id"},
		{RunAs: "www-data", Command: "/usr/bin/id", AnyArgs: true},
		{
			RunAs: "root", Command: "/usr/bin/systemctl", Args: []string{"restart", "getty@tty1.service"},
			Contained: true,
		},
		{
			RunAs: "root", Command: "/usr/bin/journalctl", Args: []string{"--lines=50", "-u", "nginx"},
			Contained: true,
		},
		{RunAs: "root", Command: "/usr/local/bin/script.sh", Contained: true},
	} {
		if err := grant.CheckSudoRule(r); err != nil {
			t.Errorf("%s: %v", grant.RuleText(r), err)
		}
	}
}

// Attack A6, field by field.
func TestSudoRulesRefuseInjection(t *testing.T) {
	never := []string{
		"\n", "\r", "\t", " ", "\x00", "\x1b", "!", "#", "\\", "*", "?", "[", "]", "{", "}", "(", ")",
		"<", ">", "|", ";", "&", "$", "`", "'", "\"", "~", "^", "\u00a0", "\u200b", "ä", "\xff",
		"\n@include /tmp/x", "\nmallory ALL=(ALL) ALL",
	}
	for _, s := range never {
		for what, r := range map[string]*rule{
			"run as":         {RunAs: "root" + s, Command: "/bin/id"},
			"command":        {RunAs: "root", Command: "/bin/i" + s + "d"},
			"argument":       {RunAs: "root", Command: "/bin/id", Args: []string{"-u", "x" + s + "y"}},
			"whole argument": {RunAs: "root", Command: "/bin/id", Args: []string{s}},
		} {
			if err := grant.CheckSudoRule(r); err == nil {
				t.Errorf("%s with %q is accepted", what, s)
			} else if !clean(err.Error()) {
				t.Errorf("%s with %q: the refusal has control characters: %q", what, s, err)
			}
		}
	}
	for _, as := range []string{
		"", "ALL", "%wheel", "#0", "-root", "root,mallory", "root:root", "!root",
		"root=", "@include", "Root",
	} {
		if grant.CheckSudoRule(&rule{RunAs: as, Command: "/bin/id"}) == nil {
			t.Errorf("run as %q is accepted", as)
		}
	}
	for _, command := range []string{
		"", "id", "./id", "../bin/id", "/", "//bin/id", "/bin/../bin/sh",
		"/bin/./id", "/bin/", "ALL", "sudoedit", "!/bin/id", "@include", "-u", "/bin/id -u",
		"/" + strings.Repeat("x", 255),
	} {
		if grant.CheckSudoRule(&rule{RunAs: "root", Command: command}) == nil {
			t.Errorf("command %q is accepted", command)
		}
	}
}

func TestSudoRulesRefuseContradictions(t *testing.T) {
	many := make([]string, 33)
	for i := range many {
		many[i] = "x"
	}
	for what, r := range map[string]*rule{
		"nothing":              nil,
		"all with a command":   {RunAs: "root", All: true, Command: "/bin/id"},
		"all with arguments":   {RunAs: "root", All: true, Args: []string{"x"}},
		"all with any":         {RunAs: "root", All: true, AnyArgs: true},
		"all as a lesser one":  {RunAs: "www-data", All: true},
		"all contained":        {RunAs: "root", All: true, Contained: true},
		"any and exact":        {RunAs: "root", Command: "/bin/id", AnyArgs: true, Args: []string{"x"}},
		"any contained":        {RunAs: "root", Command: "/bin/id", AnyArgs: true, Contained: true},
		"too many arguments":   {RunAs: "root", Command: "/bin/id", Args: many},
		"a long argument":      {RunAs: "root", Command: "/bin/id", Args: []string{strings.Repeat("x", 256)}},
		"an empty argument":    {RunAs: "root", Command: "/bin/id", Args: []string{""}},
		"a contained shell":    {RunAs: "root", Command: "/bin/bash", Contained: true},
		"a contained python":   {RunAs: "root", Command: "/usr/bin/python3.11", Contained: true},
		"a contained pager":    {RunAs: "root", Command: "/usr/bin/less", Args: []string{"/x"}, Contained: true},
		"a contained editor":   {RunAs: "root", Command: "/usr/bin/vim.tiny", Contained: true},
		"a contained sudoedit": {RunAs: "root", Command: "/usr/bin/sudoedit", Contained: true},
		"a contained copy":     {RunAs: "root", Command: "/bin/cp", Args: []string{"a", "b"}, Contained: true},
		"a contained lua":      {RunAs: "root", Command: "/usr/bin/lua5.4", Contained: true},
	} {
		if grant.CheckSudoRule(r) == nil {
			t.Errorf("%s is accepted", what)
		}
	}
}

// What is not declared contained is root-equivalent, and so is what cannot be contained.
func TestRootEquivalence(t *testing.T) {
	for _, c := range []struct {
		r    *rule
		want bool
	}{
		{&rule{RunAs: "root", All: true}, true},
		{&rule{RunAs: "root", Command: "/bin/id"}, true},
		{&rule{RunAs: "www-data", Command: "/bin/id", AnyArgs: true}, true},
		{&rule{RunAs: "root", Command: "/bin/id", AnyArgs: true, Contained: true}, true},
		{&rule{RunAs: "root", All: true, Contained: true}, true},
		{&rule{RunAs: "root", Command: "/bin/id", Contained: true}, false},
	} {
		if got := grant.RuleRootEquivalent(c.r); got != c.want {
			t.Errorf("%s: root-equivalent %v", grant.RuleText(c.r), got)
		}
		both := []*rule{{RunAs: "root", Command: "/bin/true", Contained: true}, c.r}
		if got := grant.RootEquivalent(both, []string{"web", "adm"}); got != c.want {
			t.Errorf("%s beside a contained one: root-equivalent %v", grant.RuleText(c.r), got)
		}
	}
	if grant.RootEquivalent(nil, nil) {
		t.Error("no rule is root-equivalent")
	}
	contained := []*rule{{RunAs: "root", Command: "/bin/true", Contained: true}}
	for _, g := range []string{
		"admin", "disk", "docker", "google-sudoers", "incus-admin", "kmem", "libvirt", "lxd", "podman",
		"root", "shadow", "staff", "sudo", "wheel",
	} {
		if !grant.GroupRootEquivalent(g) || !grant.RootEquivalent(contained, []string{"a", g, "z"}) {
			t.Errorf("group %s does not count as root-equivalent", g)
		}
	}
	for _, g := range []string{"web", "adm", "kvm", "systemd-journal", "dockers", "sud", ""} {
		if grant.GroupRootEquivalent(g) {
			t.Errorf("group %s counts as root-equivalent", g)
		}
	}
}

func TestRuleText(t *testing.T) {
	for want, r := range map[string]*rule{
		"root: ALL":                      {RunAs: "root", All: true},
		"root: /bin/id":                  {RunAs: "root", Command: "/bin/id"},
		"root: /bin/id (any arguments)":  {RunAs: "root", Command: "/bin/id", AnyArgs: true},
		"root: /bin/id -u x":             {RunAs: "root", Command: "/bin/id", Args: []string{"-u", "x"}},
		`ro\not: /bin/\x1b[2Jid \u202ex`: {RunAs: "ro\not", Command: "/bin/\x1b[2Jid", Args: []string{"\u202ex"}},
	} {
		if got := grant.RuleText(r); got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
}
