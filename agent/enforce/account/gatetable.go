package account

import (
	"bytes"
	"cmp"
	"fmt"
	"slices"
	"time"
)

// Mode says whether the PAM module denies or only lets the agent record what it would deny.
type Mode uint8

// The zero Mode is neither and cannot be rendered.
const (
	ModeObserve Mode = 1
	ModeEnforce Mode = 2
)

func (m Mode) String() string {
	switch m {
	case ModeObserve:
		return "observe"
	case ModeEnforce:
		return "enforce"
	}
	return fmt.Sprintf("mode(%d)", uint8(m))
}

// Class is how Curfew treats a person at the gate (proto/PROTOCOL.md, section 5). Whoever has no
// class is unmanaged, and the PAM module leaves them alone.
type Class uint8

// The zero Class is none of them and cannot be rendered.
const (
	ClassAccount Class = 1 // made by Curfew, alive only inside a grant
	ClassGated   Class = 2 // local user, no login without a grant
	ClassElevate Class = 3 // local user, only sudo is Curfew's
	ClassExempt  Class = 4 // break-glass: never asked about
)

func (c Class) String() string {
	switch c {
	case ClassAccount:
		return "account"
	case ClassGated:
		return "gated"
	case ClassElevate:
		return "elevate"
	case ClassExempt:
		return "exempt"
	}
	return fmt.Sprintf("class(%d)", uint8(c))
}

// Principal is one line of the gate table.
type Principal struct {
	Class Class
	UID   uint32
	Name  string
}

// Trial bounds a mode that nobody has confirmed yet: the PAM module enforces until either clock has come
// this far, and observes from then on, whatever has become of the agent.
type Trial struct {
	Wall time.Time
	Boot time.Duration // on the boot-time clock
}

// SelfTest is a person whom no host has, and who never has a grant: by asking about this name
// `curfew-agent enforce-on` sees that a host denies. PROTOCOL.md, section 4.
var SelfTest = Principal{Class: ClassGated, UID: 1<<32 - 2, Name: "curfew-selftest"}

// MaxGateTable is section 5's cap of the whole file, in bytes.
const MaxGateTable = 4 << 20

// RenderGateTable returns the whole gate table, in any order of principals. A name stands once. A
// uid may stand under several names, as in /etc/passwd, but only in one class: the module looks
// sudo's caller up by uid and a login by name, and both must meet the same rule. Only exempt
// principals may have a uid below 1000: the module never asks about those. A trial is one of ModeEnforce.
func RenderGateTable(mode Mode, trial *Trial, principals []Principal) ([]byte, error) {
	word := mode.String()
	switch {
	case mode != ModeObserve && mode != ModeEnforce:
		return nil, fmt.Errorf("gate table refused: unknown %v", mode)
	case trial == nil || mode == ModeObserve:
	case trial.Wall.UnixMilli() <= 0 || trial.Boot < time.Millisecond:
		return nil, fmt.Errorf("gate table refused: a trial until %v, %v", trial.Wall, trial.Boot)
	default:
		word = fmt.Sprintf("trial %d %d", trial.Wall.UnixMilli(), trial.Boot.Milliseconds())
	}
	sorted := slices.SortedFunc(slices.Values(principals), func(a, b Principal) int {
		return cmp.Or(cmp.Compare(a.UID, b.UID), cmp.Compare(a.Name, b.Name))
	})
	names := make(map[string]bool, len(sorted))
	var b bytes.Buffer
	fmt.Fprintf(&b, "curfew-gate 1\nmode %s\n", word)
	for i, p := range sorted {
		if p.Class < ClassAccount || p.Class > ClassExempt {
			return nil, fmt.Errorf("gate table refused: %q has an unknown %v", p.Name, p.Class)
		}
		if err := checkMember(p.Name); err != nil {
			return nil, fmt.Errorf("gate table refused: %q: %w", p.Name, err)
		}
		if p.UID == 1<<32-1 || p.UID < minID && p.Class != ClassExempt {
			return nil, fmt.Errorf("gate table refused: %q: uid %d cannot be %v",
				p.Name, p.UID, p.Class)
		}
		if names[p.Name] {
			return nil, fmt.Errorf("gate table refused: %q stands twice", p.Name)
		}
		names[p.Name] = true
		if i > 0 && p.UID == sorted[i-1].UID && p.Class != sorted[i-1].Class {
			return nil, fmt.Errorf("gate table refused: uid %d is both %v and %v",
				p.UID, sorted[i-1].Class, p.Class)
		}
		fmt.Fprintf(&b, "%v %d %s\n", p.Class, p.UID, p.Name)
	}
	b.WriteString("end\n")
	if b.Len() > MaxGateTable {
		return nil, fmt.Errorf("gate table refused: %d bytes are over the cap of %d",
			b.Len(), MaxGateTable)
	}
	return b.Bytes(), nil
}
