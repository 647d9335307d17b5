package breakglass

import (
	"bytes"
	"crypto/rand"
	"errors"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

func draw(t *testing.T) Code {
	t.Helper()
	c, err := NewCode(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func TestCodesAreReadBackHoweverTheyAreTyped(t *testing.T) {
	for range 200 {
		c := draw(t)
		text := c.String()
		if len(text) != TextSize || strings.ContainsAny(text, "ILOU") {
			t.Fatalf("%q", text)
		}
		for _, typed := range []string{
			text, strings.ToLower(text), strings.ReplaceAll(text, "-", " "),
			strings.ReplaceAll(text, "-", ""), " " + text + "\r\n",
			strings.ReplaceAll(text, "0", "O"), strings.ReplaceAll(text, "0", "o"),
			strings.ReplaceAll(text, "1", "I"), strings.ReplaceAll(text, "1", "l"),
		} {
			if got, err := ParseCode(typed); err != nil || got != c {
				t.Errorf("%q: %v", typed, err)
			}
		}
	}
}

// Any one wrong symbol, any two of a group that changed places and any two groups that did are found,
// all of them, and the text says in which group.
func TestMistypedCodesAreFoundAndTheGroupIsNamed(t *testing.T) {
	c := draw(t)
	text := []byte(c.String())
	tried := 0
	wrong := func(typed []byte, group int) {
		t.Helper()
		if bytes.Equal(typed, text) {
			return
		}
		tried++
		_, err := ParseCode(string(typed))
		if !errors.Is(err, ErrNoCode) || group > 0 && !strings.Contains(err.Error(), "group "+string(rune('0'+group))) {
			t.Errorf("%s for %s: %v", typed, text, err)
		}
	}
	for g := range Groups {
		at := g * (groupText + 1)
		for i := range groupText {
			for _, s := range []byte(alphabet) {
				typed := bytes.Clone(text)
				typed[at+i] = s
				wrong(typed, g+1)
			}
			for j := range i {
				typed := bytes.Clone(text)
				typed[at+i], typed[at+j] = typed[at+j], typed[at+i]
				wrong(typed, g+1)
			}
		}
		for h := range g {
			typed := bytes.Clone(text)
			other := h * (groupText + 1)
			copy(typed[at:at+groupText], text[other:other+groupText])
			copy(typed[other:other+groupText], text[at:at+groupText])
			wrong(typed, 0)
		}
	}
	if tried < 1000 {
		t.Errorf("only %d tried", tried)
	}
}

func TestNothingElseIsACode(t *testing.T) {
	text := draw(t).String()
	for _, typed := range []string{
		"", "-", text[:len(text)-1], text + "0", text + "-", "-" + text, text + text,
		strings.Replace(text, "-", "--", 1), strings.Replace(text, "-", "_", 1),
		strings.Replace(text, "-", "\n", 1), strings.Replace(text, "-", "\x00", 1),
		text[:3] + "-" + text[3:], "U" + text[1:], "Ö" + text[1:], strings.Repeat("0", 4096),
	} {
		if c, err := ParseCode(typed); !errors.Is(err, ErrNoCode) || c != (Code{}) {
			t.Errorf("%q: %v, %v", typed, c, err)
		}
	}
}

// Whatever is typed: it is refused, or it is exactly one code, which is written back as typed but for
// case, hyphens and the letters that stand for digits.
func TestParseIsStrict(t *testing.T) {
	same := strings.NewReplacer("-", "", " ", "", "O", "0", "I", "1", "L", "1")
	rapid.Check(t, func(t *rapid.T) {
		typed := rapid.StringMatching(`[0-9A-Za-z -]{0,45}`).Draw(t, "typed")
		if rapid.Bool().Draw(t, "edited") {
			var c Code
			copy(c[:], rapid.SliceOfN(rapid.ByteRange(0, 31), symbols, symbols).Draw(t, "symbols"))
			b := []byte(c.String())
			b[rapid.IntRange(0, len(b)-1).Draw(t, "at")] = rapid.Byte().Draw(t, "byte")
			typed = string(b)
		}
		c, err := ParseCode(typed)
		if err != nil {
			return
		}
		canon := same.Replace(strings.ToUpper(strings.Trim(typed, " \t\r\n")))
		if got := strings.ReplaceAll(c.String(), "-", ""); got != canon {
			t.Fatalf("%q became %s", typed, c)
		}
	})
}

func TestHashesAreBoundToHostAndSet(t *testing.T) {
	c := draw(t)
	h := HashOf([32]byte{1}, SetID{1}, c)
	if h == HashOf([32]byte{2}, SetID{1}, c) || h == HashOf([32]byte{1}, SetID{2}, c) ||
		h == HashOf([32]byte{1}, SetID{1}, draw(t)) {
		t.Error("one hash for two hosts, sets or codes")
	}
}

func TestDrawsAllOfTheAlphabet(t *testing.T) {
	seen := make(map[byte]bool)
	for range 100 {
		c := draw(t)
		for _, s := range c {
			seen[s] = true
		}
	}
	if len(seen) != 32 {
		t.Errorf("%d of 32 symbols", len(seen))
	}
	if _, err := NewCode(strings.NewReader("short")); err == nil {
		t.Error("a code of too little randomness")
	}
}
