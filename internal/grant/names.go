package grant

import (
	"errors"
	"fmt"
	"strings"
	"unicode"
	"unicode/utf8"
)

// Limits on text that people write.
const (
	MaxReason      = 4 << 10 // bytes
	maxUserName    = 32
	maxHostName    = 128
	maxGroupName   = 32
	maxRoleName    = 32
	maxOrgName     = 64
	requestIDBytes = 12
)

// CheckUserName accepts what is a safe login on every host: [a-z_][a-z0-9_-]*, at most 32 bytes. A
// dot or a tilde would make sudo skip the drop-in; a leading dash would be an option.
func CheckUserName(s string) error {
	return checkName("user name", s, maxUserName, "a-z, 0-9, _ and -, beginning with a-z or _",
		func(i int, c byte) bool {
			return isLower(c) || c == '_' || i > 0 && (isDigit(c) || c == '-')
		})
}

// CheckUnixGroup accepts the name of a Unix group on a host, by the same rule as user names.
func CheckUnixGroup(s string) error {
	return checkName("unix group", s, maxGroupName, "a-z, 0-9, _ and -, beginning with a-z or _",
		func(i int, c byte) bool {
			return isLower(c) || c == '_' || i > 0 && (isDigit(c) || c == '-')
		})
}

// CheckGroupName accepts a group of the directory: [a-z][a-z0-9-]*, at most 32 bytes.
func CheckGroupName(s string) error { return checkLabel("group name", s, maxGroupName) }

// CheckRoleName accepts a role: [a-z][a-z0-9-]*, at most 32 bytes.
func CheckRoleName(s string) error { return checkLabel("role name", s, maxRoleName) }

func checkLabel(what, s string, limit int) error {
	return checkName(what, s, limit, "a-z, 0-9 and -, beginning with a-z", func(i int, c byte) bool {
		return isLower(c) || i > 0 && (isDigit(c) || c == '-')
	})
}

// CheckHostName accepts lower-case DNS names: labels of a-z, 0-9 and -, joined by dots, at most 128
// bytes, no label beginning or ending with a dash.
func CheckHostName(s string) error {
	err := checkName("host name", s, maxHostName, "a-z, 0-9, - and .", func(_ int, c byte) bool {
		return isLower(c) || isDigit(c) || c == '-' || c == '.'
	})
	if err != nil {
		return err
	}
	for label := range strings.SplitSeq(s, ".") {
		if label == "" || len(label) > 63 || label[0] == '-' || label[len(label)-1] == '-' {
			return fmt.Errorf("host name %q has a bad label %q: 1 to 63 characters that neither "+
				"begin nor end with a dash", s, label)
		}
	}
	return nil
}

// CheckOrganisation accepts [a-z0-9.-], at most 64 bytes.
func CheckOrganisation(s string) error {
	return checkName("organisation", s, maxOrgName, "a-z, 0-9, . and -", func(i int, c byte) bool {
		return isLower(c) || isDigit(c) || i > 0 && (c == '-' || c == '.')
	})
}

// CheckRequestID accepts the form that NewRequestID draws.
func CheckRequestID(s string) error {
	err := checkName("request id", s, requestIDBytes, "0-9 and a-z", func(_ int, c byte) bool {
		return isLower(c) || isDigit(c)
	})
	if err == nil && len(s) != requestIDBytes {
		err = fmt.Errorf("request id %q has %d characters, want %d", s, len(s), requestIDBytes)
	}
	return err
}

// CheckReason accepts 1 byte to 4 KiB of UTF-8 that is not only white space. Control characters are
// kept as written; whoever shows a reason shows it through VisibleText.
func CheckReason(s string) error {
	switch {
	case strings.TrimSpace(s) == "":
		return errors.New("the reason is empty: say why access is needed")
	case len(s) > MaxReason:
		return fmt.Errorf("the reason has %d bytes; at most %d", len(s), MaxReason)
	case !utf8.ValidString(s):
		return errors.New("the reason is not valid UTF-8")
	}
	return nil
}

func checkName(what, s string, limit int, rule string, ok func(int, byte) bool) error {
	if s == "" {
		return fmt.Errorf("%s is empty", what)
	}
	if len(s) > limit {
		return fmt.Errorf("%s has %d bytes; at most %d", what, len(s), limit)
	}
	for i := range len(s) {
		if !ok(i, s[i]) {
			return fmt.Errorf("%s %q: only %s", what, VisibleText(s), rule)
		}
	}
	return nil
}

func isLower(c byte) bool { return c >= 'a' && c <= 'z' }
func isDigit(c byte) bool { return c >= '0' && c <= '9' }

// Clip cuts s to at most limit bytes, never inside a character: half of one is no text, and no message
// takes it.
func Clip(s string, limit int) string {
	if len(s) <= limit {
		return s
	}
	for limit > 0 && !utf8.RuneStart(s[limit]) {
		limit--
	}
	return s[:limit]
}

// VisibleText returns s with everything that could steer a terminal or hide text made visible:
// control characters, bidirectional, zero-width and other invisible characters and broken UTF-8
// become \x.. or \u.... escapes. The result is one line.
func VisibleText(s string) string {
	var b strings.Builder
	for len(s) > 0 {
		r, n := utf8.DecodeRuneInString(s)
		switch {
		case r == utf8.RuneError && n == 1:
			fmt.Fprintf(&b, `\x%02x`, s[0])
		case r == '\n':
			b.WriteString(`\n`)
		case r == '\t':
			b.WriteString(`\t`)
		case r < 0x20 || r == 0x7f:
			fmt.Fprintf(&b, `\x%02x`, r)
		case !unicode.IsPrint(r) || unicode.In(r, unicode.Other_Default_Ignorable_Code_Point,
			unicode.Variation_Selector):
			fmt.Fprintf(&b, `\u%04x`, r)
		default:
			b.WriteString(s[:n])
		}
		s = s[n:]
	}
	return b.String()
}
