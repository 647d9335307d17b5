package world

// plain takes the control sequences of ECMA-48 out of what a program writes to a terminal, and the
// carriage return out of the end of a line. It remembers where it is between writes.
type plain struct {
	state byte // 0 in text, else the last byte that decides what comes next
}

// write appends to text what is text in data.
func (p *plain) write(text, data []byte) []byte {
	const (
		bell   = 7
		escape = 0x1b
	)
	for _, b := range data {
		switch p.state {
		case '[': // control sequence: ends with a byte from @ to ~
			if b >= 0x40 && b <= 0x7e {
				p.state = 0
			}
		case ']': // operating system command: ends with BEL or ESC \
			if b == bell {
				p.state = 0
			} else if b == escape {
				p.state = escape
			}
		case '(': // choice of a character set: one byte more
			p.state = 0
		case escape:
			if p.state = 0; b == '[' || b == ']' || b == '(' {
				p.state = b
			}
		default:
			if p.state == '\r' && b != '\n' {
				text = append(text, '\r')
			}
			p.state = 0
			switch b {
			case escape, '\r':
				p.state = b
			case bell:
			default:
				text = append(text, b)
			}
		}
	}
	return text
}
