package sudoers

import (
	"fmt"
	"slices"
	"strings"
)

// loaders are variables by which a caller's own code runs inside a program of somebody else's: kept
// through sudo, they turn any rule into all of root.
var loaders = []string{
	"LD_", "BASH_ENV", "ENV", "PYTHON", "PERL5", "PERLLIB", "RUBYLIB", "RUBYOPT", "NODE_OPTIONS",
	"JAVA_TOOL_OPTIONS", "GCONV_PATH", "IFS", "*",
}

// Defeating returns, in words, the settings of a policy that defeat what a grant's rule says, for
// whomever they are: those that take PAM away, and those that let the caller's own code into a command.
func Defeating(p Policy) []string {
	var found []string
	for _, s := range p.Defaults {
		for _, option := range s.Options {
			if text := defeats(option); text != "" {
				found = append(found, text)
			}
			found = append(found, unsafe(option)...)
		}
	}
	slices.Sort(found)
	return slices.Compact(found)
}

func unsafe(option map[string]any) []string {
	var found []string
	for name, value := range option {
		switch name {
		case "env_reset":
			if value == false {
				found = append(found, "!env_reset (commands get the caller's environment)")
			}
		case "setenv", "ignore_local_sudoers":
			if value == true {
				found = append(found, name)
			}
		case "env_keep", "env_check":
			list, _ := value.([]any)
			for _, v := range list {
				if text := fmt.Sprint(v); option["operation"] != "list_remove" && loads(text) {
					found = append(found, name+" of "+text)
				}
			}
		}
	}
	return found
}

func loads(variable string) bool {
	variable, _, _ = strings.Cut(variable, "=")
	return slices.ContainsFunc(loaders, func(l string) bool {
		return variable == l || len(l) > 3 && strings.HasPrefix(variable, l) ||
			l == "LD_" && strings.HasPrefix(variable, l)
	})
}

// StandingRules returns, in words, the rules that give a person sudo for good: those of grants carry
// their end.
func StandingRules(p Policy, who Person) []string {
	var found []string
	for _, spec := range p.Specs {
		spec.Commands = slices.DeleteFunc(slices.Clone(spec.Commands), func(c CommandSpec) bool {
			return slices.ContainsFunc(c.Options, func(o map[string]any) bool { return o["notafter"] != nil })
		})
		if len(spec.Commands) > 0 && matches(spec.Users, who) {
			found = append(found, fmt.Sprintf("%s has %s", who.Login, say(spec)))
		}
	}
	slices.Sort(found)
	return slices.Compact(found)
}
