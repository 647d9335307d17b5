package scim

import (
	"strconv"
	"strings"
)

// object is a JSON object whose known attributes are spelt as in RFC 7643, whatever the client wrote:
// attribute names are case-insensitive.
type object map[string]any

const (
	coreUser   = "urn:ietf:params:scim:schemas:core:2.0:User"
	coreGroup  = "urn:ietf:params:scim:schemas:core:2.0:Group"
	enterprise = "urn:ietf:params:scim:schemas:extension:enterprise:2.0:User"
)

// spelling of the attributes that are read here.
var spelling = func() map[string]string {
	out := make(map[string]string)
	for _, name := range []string{
		"schemas", "id", "externalId", "userName", "name", "givenName", "familyName", "displayName",
		"active", "emails", "value", "type", "primary", "manager", "members", "meta", "Operations", "op",
		"path", enterprise,
	} {
		out[strings.ToLower(name)] = name
	}
	return out
}()

func spelt(name string) string {
	if s, ok := spelling[strings.ToLower(name)]; ok {
		return s
	}
	return name
}

// canonical spells the attributes of an object, and those inside of it, as usual.
func canonical(o map[string]any) object {
	out := make(object, len(o))
	for name, value := range o {
		out[spelt(name)] = canonicalValue(value)
	}
	return out
}

func canonicalValue(v any) any {
	switch v := v.(type) {
	case map[string]any:
		return map[string]any(canonical(v))
	case []any:
		out := make([]any, len(v))
		for i, x := range v {
			out[i] = canonicalValue(x)
		}
		return out
	}
	return v
}

func (o object) text(name string) string {
	s, _ := o[name].(string)
	return s
}

func (o object) in(name string) object {
	m, _ := o[name].(map[string]any)
	return m
}

func (o object) list(name string) []object {
	var out []object
	switch v := o[name].(type) {
	case []any:
		for _, x := range v {
			if m, ok := x.(map[string]any); ok {
				out = append(out, m)
			}
		}
	case map[string]any:
		out = append(out, v)
	}
	return out
}

// flag is a boolean; some clients write it as text.
func (o object) flag(name string) (value, known bool) {
	switch v := o[name].(type) {
	case bool:
		return v, true
	case string:
		b, err := strconv.ParseBool(strings.ToLower(v))
		return b, err == nil
	}
	return false, false
}
