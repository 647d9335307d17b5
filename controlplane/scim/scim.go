// Package scim lets the organisation's identity provider create, change and disable people and groups
// by SCIM 2.0 (RFC 7643, RFC 7644), over a port of its own.
//
// It knows the protocol and no rule: package access says what a change means and carries it out. It
// believes nobody without a bearer token whose hash is stored. Data comes from the provider's
// SCIM client and goes to access. Nothing here deletes by silence: what a client leaves out of a list
// or does not send changes nothing.
package scim

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/curfew-access/curfew/controlplane/identity"
	"github.com/curfew-access/curfew/controlplane/reason"
	apiv1 "github.com/curfew-access/curfew/proto/curfew/api/v1"
)

// Limits on what a client may send and ask.
const (
	maxBody     = 1 << 20
	defaultPage = 100
	maxPage     = 500
	maxFailures = 30 // wrong tokens from one address within failuresFor
	failuresFor = time.Minute
	maxAddrs    = 10000
	base        = "/scim/v2"
)

// People is what access does for SCIM clients.
type People interface {
	SCIMTokenHolds(ctx context.Context, token string) (bool, error)
	SCIMUsers(ctx context.Context) ([]identity.SCIMUser, error)
	SCIMUser(ctx context.Context, id string) (identity.SCIMUser, error)
	// PutSCIMUser changes the resource of an id, or makes one when it is empty.
	PutSCIMUser(ctx context.Context, id string, edit func(*identity.SCIMUser) error) (
		identity.SCIMUser, error)
	DeleteSCIMUser(ctx context.Context, id string) error
	SCIMGroups(ctx context.Context) ([]identity.SCIMGroup, error)
	SCIMGroup(ctx context.Context, id string) (identity.SCIMGroup, error)
	PutSCIMGroup(ctx context.Context, id string, edit func(*identity.SCIMGroup) error) (
		identity.SCIMGroup, error)
	DeleteSCIMGroup(ctx context.Context, id string) error
}

// Handler serves the protocol. Safe for concurrent use.
type Handler struct {
	people People
	now    func() time.Time
	log    hclog.Logger
	mux    *http.ServeMux

	mu     sync.Mutex // guards failed
	failed map[string]failures
}

type failures struct {
	n     int
	since time.Time
}

// New makes a handler.
func New(people People, now func() time.Time, log hclog.Logger) *Handler {
	h := &Handler{
		people: people, now: now, log: log, mux: http.NewServeMux(), failed: map[string]failures{},
	}
	for pattern, serve := range map[string]func(*http.Request) (reply, error){
		"GET /Users": h.listUsers, "POST /Users": h.createUser, "GET /Users/{id}": h.getUser,
		"PUT /Users/{id}": h.putUser, "PATCH /Users/{id}": h.patchUser,
		"DELETE /Users/{id}": h.deleteUser,
		"GET /Groups":        h.listGroups, "POST /Groups": h.createGroup, "GET /Groups/{id}": h.getGroup,
		"PUT /Groups/{id}": h.putGroup, "PATCH /Groups/{id}": h.patchGroup,
		"DELETE /Groups/{id}":        h.deleteGroup,
		"GET /ServiceProviderConfig": providerConfig, "GET /ResourceTypes": resourceTypes,
		"GET /Schemas": schemas,
	} {
		method, path, _ := strings.Cut(pattern, " ")
		h.mux.Handle(method+" "+base+path, h.wrap(serve))
	}
	h.mux.Handle("/", h.wrap(func(*http.Request) (reply, error) {
		return reply{}, reason.NotFound("there is nothing here; SCIM is below %s", base)
	}))
	return h
}

// ServeHTTP implements http.Handler.
func (h *Handler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	r.Body = http.MaxBytesReader(w, r.Body, maxBody)
	h.mux.ServeHTTP(w, r)
}

// reply is what a method answers.
type reply struct {
	status   int
	body     any
	version  int64 // ETag; 0 for none
	location string
}

// wrap lets only clients with a token in, and words errors as RFC 7644, section 3.12, has them.
func (h *Handler) wrap(serve func(*http.Request) (reply, error)) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if err := h.admit(r); err != nil {
			h.fail(w, r, err)
			return
		}
		out, err := serve(r)
		if err != nil {
			h.fail(w, r, err)
			return
		}
		if out.version > 0 {
			w.Header().Set("ETag", etag(out.version))
		}
		if out.location != "" {
			w.Header().Set("Location", out.location)
		}
		send(w, out.status, out.body)
	})
}

func send(w http.ResponseWriter, status int, body any) {
	if body == nil {
		w.WriteHeader(status)
		return
	}
	w.Header().Set("Content-Type", "application/scim+json")
	w.WriteHeader(status)
	// A client that hung up is nobody to tell.
	_ = json.NewEncoder(w).Encode(body)
}

// statusError is an answer that is no reason.Error.
type statusError struct {
	status   int
	scimType string
	text     string
}

// Error is the text.
func (e *statusError) Error() string { return e.text }

var errBusy = &statusError{http.StatusTooManyRequests, "", "too many wrong tokens from this address"}

// admit demands the bearer token of a SCIM client.
func (h *Handler) admit(r *http.Request) error {
	addr, _, err := net.SplitHostPort(r.RemoteAddr)
	if err != nil {
		addr = r.RemoteAddr
	}
	if h.blocked(addr) {
		return errBusy
	}
	token, ok := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
	if ok && len(token) <= 256 {
		holds, err := h.people.SCIMTokenHolds(r.Context(), token)
		if err != nil || holds {
			return err
		}
	}
	h.noteFailure(addr)
	h.log.Warn("a SCIM call without a token that holds", "from", addr)
	return &statusError{http.StatusUnauthorized, "", "want a bearer token of curfew admin scim token"}
}

func (h *Handler) blocked(addr string) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	f := h.failed[addr]
	return f.n >= maxFailures && h.now().Sub(f.since) < failuresFor
}

func (h *Handler) noteFailure(addr string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	f := h.failed[addr]
	if h.now().Sub(f.since) >= failuresFor {
		f = failures{since: h.now()}
	}
	if len(h.failed) >= maxAddrs {
		clear(h.failed)
	}
	f.n++
	h.failed[addr] = f
}

var statuses = map[apiv1.Code]statusError{
	apiv1.Code_CODE_INVALID:   {http.StatusBadRequest, "invalidValue", ""},
	apiv1.Code_CODE_DENIED:    {http.StatusForbidden, "", ""},
	apiv1.Code_CODE_NOT_FOUND: {http.StatusNotFound, "", ""},
	apiv1.Code_CODE_CONFLICT:  {http.StatusConflict, "uniqueness", ""},
	apiv1.Code_CODE_LIMIT:     {http.StatusBadRequest, "tooMany", ""},
}

func (h *Handler) fail(w http.ResponseWriter, r *http.Request, err error) {
	var e *statusError
	if why, ok := reason.Of(err); ok {
		known := statuses[why.Code]
		known.text = why.Text
		if why.Hint != "" {
			known.text += "; " + why.Hint
		}
		e = &known
	} else if !errors.As(err, &e) {
		ref := make([]byte, 4)
		_, _ = rand.Read(ref)
		h.log.Error("a SCIM call failed", "path", r.URL.Path, "ref", hex.EncodeToString(ref), "error", err)
		e = &statusError{status: 500, text: "internal error (ref " + hex.EncodeToString(ref) + ")"}
	}
	if e.status == http.StatusUnauthorized {
		w.Header().Set("WWW-Authenticate", "Bearer")
	}
	body := map[string]any{
		"schemas": []string{"urn:ietf:params:scim:api:messages:2.0:Error"},
		"status":  strconv.Itoa(e.status), "detail": e.text,
	}
	if e.scimType != "" {
		body["scimType"] = e.scimType
	}
	send(w, e.status, body)
}

func badRequest(scimType, format string, args ...any) error {
	return &statusError{http.StatusBadRequest, scimType, fmt.Sprintf(format, args...)}
}

// read decodes a body into an object whose attributes have their usual spelling.
func read(r *http.Request) (object, error) {
	data, err := io.ReadAll(r.Body)
	var long *http.MaxBytesError
	if errors.As(err, &long) {
		return nil, &statusError{http.StatusRequestEntityTooLarge, "", "the body is too long"}
	}
	if err != nil {
		return nil, err
	}
	var o map[string]any
	if err := json.Unmarshal(data, &o); err != nil || o == nil {
		return nil, badRequest("invalidSyntax", "the body is no JSON object")
	}
	return canonical(o), nil
}

func etag(version int64) string { return fmt.Sprintf(`W/"%d"`, version) }

// ifMatch refuses a change of what has changed since the client read it.
func ifMatch(r *http.Request, version int64) error {
	want := r.Header.Get("If-Match")
	if want == "" || want == "*" || want == etag(version) || want == strings.TrimPrefix(etag(version), "W/") {
		return nil
	}
	return &statusError{http.StatusPreconditionFailed, "", "the resource has changed since"}
}

// page is one page of a list (RFC 7644, section 3.4.2.4).
func page[T any](r *http.Request, all []T, show func(*http.Request, T) object) (reply, error) {
	start, count := 1, defaultPage
	for name, to := range map[string]*int{"startIndex": &start, "count": &count} {
		if text := r.URL.Query().Get(name); text != "" {
			n, err := strconv.Atoi(text)
			if err != nil {
				return reply{}, badRequest("invalidValue", "%s is no number", name)
			}
			*to = n
		}
	}
	start, count = max(start, 1), min(max(count, 0), maxPage)
	from := min(start-1, len(all))
	resources := make([]object, 0, count)
	for _, x := range all[from:min(from+count, len(all))] {
		resources = append(resources, show(r, x))
	}
	return reply{status: http.StatusOK, body: map[string]any{
		"schemas":      []string{"urn:ietf:params:scim:api:messages:2.0:ListResponse"},
		"totalResults": len(all), "startIndex": start, "itemsPerPage": len(resources),
		"Resources": resources,
	}}, nil
}
