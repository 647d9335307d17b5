package scim

import (
	"fmt"
	"reflect"
	"slices"
	"strings"
)

const maxOperations = 200

// path is where a PATCH operation works: an attribute, perhaps of an extension, perhaps only the
// values that a filter chooses, perhaps one sub-attribute of them.
type path struct {
	extension string
	attr      string
	filter    *filter
	sub       string
}

// parsePath reads a path (RFC 7644, section 3.5.2).
func parsePath(s string) (p path, err error) {
	for _, urn := range []string{coreUser, coreGroup, enterprise} {
		if len(s) > len(urn) && strings.EqualFold(s[:len(urn)], urn) && s[len(urn)] == ':' {
			if s = s[len(urn)+1:]; urn == enterprise {
				p.extension = enterprise
			}
			break
		}
	}
	if strings.EqualFold(s, enterprise) {
		p.attr = enterprise
		return p, nil
	}
	if before, rest, ok := strings.Cut(s, "["); ok {
		inner, after, closed := strings.Cut(rest, "]")
		if !closed || after != "" && !strings.HasPrefix(after, ".") {
			return p, badRequest("invalidPath", "the path %q cannot be read", s)
		}
		f, err := parseFilter(inner)
		if err != nil {
			return p, err
		}
		p.attr, p.filter, p.sub = spelt(before), &f, spelt(strings.TrimPrefix(after, "."))
	} else {
		attr, sub, _ := strings.Cut(s, ".")
		p.attr, p.sub = spelt(attr), spelt(sub)
	}
	if p.attr == "" || strings.ContainsAny(p.attr+p.sub, " \"[]") {
		return p, badRequest("invalidPath", "the path %q cannot be read", s)
	}
	return p, nil
}

// patch applies the operations of a PatchOp message to an object, in order.
func patch(o, message object) error {
	operations := message.list("Operations")
	if len(operations) == 0 || len(operations) > maxOperations {
		return badRequest("invalidSyntax", "want 1 to %d Operations", maxOperations)
	}
	for _, op := range operations {
		if err := operate(o, strings.ToLower(op.text("op")), op.text("path"), op["value"]); err != nil {
			return err
		}
	}
	return nil
}

func operate(o object, op, where string, value any) error {
	if op != "add" && op != "replace" && op != "remove" {
		return badRequest("invalidSyntax", "an operation is add, replace or remove, not %q", op)
	}
	if where != "" {
		p, err := parsePath(where)
		if err != nil {
			return err
		}
		return o.change(op, p, value)
	}
	fields, ok := value.(map[string]any)
	if !ok || op == "remove" {
		return badRequest("noTarget", "an operation without path has an object as its value")
	}
	for name, v := range fields {
		p, err := parsePath(name)
		if err != nil {
			return err
		}
		if err := o.change(op, p, v); err != nil {
			return err
		}
	}
	return nil
}

func (o object) change(op string, p path, value any) error {
	if p.extension != "" {
		inner := o.in(p.extension)
		if inner == nil {
			inner = object{}
			o[p.extension] = map[string]any(inner)
		}
		p.extension = ""
		return inner.change(op, p, value)
	}
	switch {
	case p.filter != nil:
		return o.changeChosen(op, p, value)
	case p.sub != "":
		inner := o.in(p.attr)
		if inner == nil {
			inner = object{}
			o[p.attr] = map[string]any(inner)
		}
		return inner.change(op, path{attr: p.sub}, value)
	case op == "remove":
		return o.remove(p.attr, value)
	case op == "add":
		o[p.attr] = added(o[p.attr], value)
	default:
		o[p.attr] = value
	}
	return nil
}

// remove drops an attribute, or, where a value is given, those values of a list.
func (o object) remove(attr string, value any) error {
	if value == nil {
		delete(o, attr)
		return nil
	}
	gone, ok := value.([]any)
	if !ok {
		gone = []any{value}
	}
	have, ok := o[attr].([]any)
	if !ok {
		return nil
	}
	o[attr] = slices.DeleteFunc(have, func(x any) bool {
		return slices.ContainsFunc(gone, func(g any) bool { return sameValue(x, g) })
	})
	return nil
}

// sameValue compares two entries of a list by their value, as members and emails are told apart.
func sameValue(a, b any) bool {
	x, okX := a.(map[string]any)
	y, okY := b.(map[string]any)
	if okX && okY {
		return x["value"] != nil && reflect.DeepEqual(x["value"], y["value"])
	}
	return reflect.DeepEqual(a, b)
}

// added is what an attribute is once something was added to it.
func added(have, value any) any {
	switch old := have.(type) {
	case []any:
		more, ok := value.([]any)
		if !ok {
			more = []any{value}
		}
		for _, m := range more {
			if !slices.ContainsFunc(old, func(x any) bool { return sameValue(x, m) }) {
				old = append(old, m)
			}
		}
		return old
	case map[string]any:
		if fields, ok := value.(map[string]any); ok {
			for name, v := range fields {
				old[name] = v
			}
			return old
		}
	}
	return value
}

// changeChosen works on those entries of a list that a filter chooses.
func (o object) changeChosen(op string, p path, value any) error {
	have, _ := o[p.attr].([]any)
	found := false
	kept := make([]any, 0, len(have))
	for _, x := range have {
		entry, ok := x.(map[string]any)
		if !ok || !p.filter.fits(entry) {
			kept = append(kept, x)
			continue
		}
		found = true
		if op == "remove" && p.sub == "" {
			continue
		}
		if err := changeEntry(entry, op, p.sub, value); err != nil {
			return err
		}
		kept = append(kept, entry)
	}
	if !found && op != "remove" {
		// Clients set emails[type eq "work"].value of a user who has none yet.
		entry := map[string]any{p.filter.attr: p.filter.value}
		if err := changeEntry(entry, op, p.sub, value); err != nil {
			return err
		}
		kept = append(kept, entry)
	}
	o[p.attr] = kept
	return nil
}

func changeEntry(entry object, op, sub string, value any) error {
	if sub != "" {
		return entry.change(op, path{attr: sub}, value)
	}
	fields, ok := value.(map[string]any)
	if !ok {
		return badRequest("invalidValue", "the value of an entry is an object")
	}
	for name, v := range fields {
		entry[name] = v
	}
	return nil
}

// filter is attribute eq value; it is all that clients need to find what they made.
type filter struct {
	attr  string
	value any
}

func parseFilter(s string) (f filter, err error) {
	fields := strings.SplitN(strings.TrimSpace(s), " ", 3)
	if len(fields) != 3 || !strings.EqualFold(fields[1], "eq") {
		return f, badRequest("invalidFilter", "only filters of the form attribute eq \"value\" are known")
	}
	f.attr = spelt(fields[0])
	value := strings.TrimSpace(fields[2])
	switch {
	case len(value) >= 2 && value[0] == '"' && value[len(value)-1] == '"' &&
		!strings.ContainsAny(value[1:len(value)-1], `"\`):
		f.value = value[1 : len(value)-1]
	case strings.EqualFold(value, "true"), strings.EqualFold(value, "false"):
		f.value = strings.EqualFold(value, "true")
	default:
		return f, badRequest("invalidFilter", "the value %s of a filter cannot be read", value)
	}
	return f, nil
}

// exact are the attributes that are compared byte by byte (RFC 7643: caseExact).
var exact = map[string]bool{"id": true, "externalId": true, "value": true}

func (f *filter) fits(o object) bool {
	have := o[f.attr]
	if f.attr == "active" || f.attr == "primary" {
		v, known := o.flag(f.attr)
		return known && v == (fmt.Sprint(f.value) == "true")
	}
	a, okA := have.(string)
	b, okB := f.value.(string)
	if !okA || !okB {
		return false
	}
	return a == b || !exact[f.attr] && strings.EqualFold(a, b)
}
