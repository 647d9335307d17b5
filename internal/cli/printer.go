package cli

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"golang.org/x/term"
	"golang.org/x/text/width"

	"github.com/curfew-access/curfew/internal/grant"
)

// style is one of the few looks that the command uses; it is put on after the text was made safe.
type style string

const (
	plain  style = ""
	bold   style = "1"
	dim    style = "2"
	red    style = "31"
	green  style = "32"
	yellow style = "33"
	alarm  style = "1;31"
)

// cell is one value of a table: text for people and, where it differs, raw for pipes.
type cell struct {
	text  string
	raw   string
	style style
}

func text(s string) cell { return cell{text: s} }

func styled(s style, text string) cell { return cell{text: text, style: s} }

// field is one line of a description: a label and a value.
type field struct {
	label string
	value cell
}

// printer is the only way from a command to stdout and stderr. Whatever it is given, only
// printable characters, line ends and its own colours come out.
type printer struct {
	out, err       io.Writer
	outTTY, errTTY bool
	color          bool // on stdout
	errColor       bool
	json           bool
	now            func() time.Time
}

func newPrinter(env Env) *printer {
	p := &printer{out: env.Stdout, err: env.Stderr, now: env.Now}
	p.outTTY, p.errTTY = isTerminal(env.Stdout), isTerminal(env.Stderr)
	monochrome := env.Getenv("NO_COLOR") != "" || env.Getenv("TERM") == "dumb"
	p.color, p.errColor = p.outTTY && !monochrome, p.errTTY && !monochrome
	return p
}

func isTerminal(stream any) bool {
	f, ok := stream.(*os.File)
	return ok && term.IsTerminal(int(f.Fd()))
}

// terminalWidth is the number of columns of a terminal; 80 when it does not say.
func terminalWidth(stream any) int {
	if f, ok := stream.(*os.File); ok {
		if w, _, err := term.GetSize(int(f.Fd())); err == nil && w > 0 {
			return w
		}
	}
	return 80
}

func paint(on bool, s style, text string) string {
	if !on || s == plain || text == "" {
		return text
	}
	return "\x1b[" + string(s) + "m" + text + "\x1b[0m"
}

// Line writes one line of data.
func (p *printer) Line(format string, args ...any) {
	fmt.Fprintln(p.out, grant.VisibleText(fmt.Sprintf(format, args...)))
}

// Talk writes one line to the person, not to the pipe.
func (p *printer) Talk(format string, args ...any) {
	fmt.Fprintln(p.err, grant.VisibleText(fmt.Sprintf(format, args...)))
}

// Ask writes a prompt without a line end.
func (p *printer) Ask(format string, args ...any) {
	fmt.Fprint(p.err, grant.VisibleText(fmt.Sprintf(format, args...)))
}

// Error, Warn and Hint are the three voices.
func (p *printer) Error(format string, args ...any) { p.voice(red, "error", format, args) }

// Warn tells what is odd and does not end the command.
func (p *printer) Warn(format string, args ...any) { p.voice(yellow, "warning", format, args) }

// Hint tells what to type next.
func (p *printer) Hint(format string, args ...any) { p.voice(dim, "hint", format, args) }

func (p *printer) voice(s style, voice, format string, args []any) {
	fmt.Fprintf(p.err, "curfew: %s: %s\n", paint(p.errColor, s, voice),
		grant.VisibleText(fmt.Sprintf(format, args...)))
}

// JSON writes v as one line. Characters that could steer a terminal are escaped, losslessly.
func (p *printer) JSON(v any) error {
	line, err := encodeJSON(v)
	if err != nil {
		return err
	}
	_, err = fmt.Fprintln(p.out, line)
	return err
}

// jsonList writes an array with one element per line, which suits jq and grep alike.
func jsonList[T any](p *printer, list []T) error {
	lines := make([]string, len(list))
	for i, v := range list {
		line, err := encodeJSON(v)
		if err != nil {
			return err
		}
		lines[i] = line
	}
	if len(lines) == 0 {
		_, err := fmt.Fprintln(p.out, "[]")
		return err
	}
	_, err := fmt.Fprintf(p.out, "[\n%s\n]\n", strings.Join(lines, ",\n"))
	return err
}

func encodeJSON(v any) (string, error) {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	if err := e.Encode(v); err != nil {
		return "", fmt.Errorf("encoding JSON: %w", err)
	}
	return escapeJSON(strings.TrimSuffix(b.String(), "\n")), nil
}

func escapeJSON(s string) string {
	var b strings.Builder
	for _, r := range s {
		switch {
		case r == utf8.RuneError || unicode.IsPrint(r):
			b.WriteRune(r)
		case r > 0xffff:
			r -= 0x10000
			fmt.Fprintf(&b, `\u%04x\u%04x`, 0xd800+(r>>10), 0xdc00+(r&0x3ff))
		default:
			fmt.Fprintf(&b, `\u%04x`, r)
		}
	}
	return b.String()
}

// Table writes aligned columns with a heading on a terminal, and tab-separated rows in a pipe.
func (p *printer) Table(heading []string, rows [][]cell) {
	if !p.outTTY {
		for _, row := range rows {
			parts := make([]string, len(row))
			for i, c := range row {
				parts[i] = grant.VisibleText(c.plainText())
			}
			fmt.Fprintln(p.out, strings.Join(parts, "\t"))
		}
		return
	}
	head := make([]cell, len(heading))
	for i, h := range heading {
		head[i] = styled(bold, h)
	}
	p.align(append([][]cell{head}, rows...), terminalWidth(p.out))
}

func (c cell) plainText() string {
	if c.raw != "" {
		return c.raw
	}
	return c.text
}

func (p *printer) align(rows [][]cell, limit int) {
	widths := make([]int, len(rows[0]))
	for _, row := range rows {
		for i, c := range row {
			widths[i] = max(widths[i], columns(grant.VisibleText(c.text)))
		}
	}
	for _, row := range rows {
		var b strings.Builder
		used := 0
		for i, c := range row {
			shown := grant.VisibleText(c.text)
			if i == len(row)-1 {
				b.WriteString(paint(p.color, c.style, cut(shown, max(limit-used, 12))))
				break
			}
			b.WriteString(paint(p.color, c.style, shown))
			b.WriteString(strings.Repeat(" ", widths[i]-columns(shown)+2))
			used += widths[i] + 2
		}
		fmt.Fprintln(p.out, strings.TrimRight(b.String(), " "))
	}
}

// Fields writes labels and values, one pair per line, to stdout.
func (p *printer) Fields(fields []field) { p.fields(p.out, p.outTTY, p.color, fields) }

// TalkFields writes labels and values to the person.
func (p *printer) TalkFields(fields []field) { p.fields(p.err, p.errTTY, p.errColor, fields) }

func (p *printer) fields(w io.Writer, tty, color bool, fields []field) {
	widest := 0
	for _, f := range fields {
		widest = max(widest, columns(f.label))
	}
	for _, f := range fields {
		value := f.value.text
		if !tty {
			value = f.value.plainText()
		}
		label := f.label + strings.Repeat(" ", widest-columns(f.label))
		fmt.Fprintf(w, "%s  %s\n", paint(color, dim, label),
			paint(color, f.value.style, grant.VisibleText(value)))
	}
}

// columns is the number of terminal columns that safe text takes.
func columns(s string) int {
	n := 0
	for _, r := range s {
		n += runeColumns(r)
	}
	return n
}

func runeColumns(r rune) int {
	if unicode.In(r, unicode.Mn, unicode.Me) {
		return 0
	}
	switch width.LookupRune(r).Kind() {
	case width.EastAsianWide, width.EastAsianFullwidth:
		return 2
	}
	return 1
}

// cut shortens safe text to a number of columns, with an ellipsis where something is missing.
func cut(s string, limit int) string {
	if columns(s) <= limit {
		return s
	}
	used := 0
	for i, r := range s {
		if used += runeColumns(r); used > limit-1 {
			return s[:i] + "…"
		}
	}
	return s
}
