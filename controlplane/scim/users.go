package scim

import (
	"net/http"
	"time"

	"github.com/curfew-access/curfew/controlplane/identity"
)

func meta(kind, place string, created, changed time.Time, version int64) map[string]any {
	return map[string]any{
		"resourceType": kind, "location": place, "version": etag(version),
		"created":      created.UTC().Format(time.RFC3339Nano),
		"lastModified": changed.UTC().Format(time.RFC3339Nano),
	}
}

// place is a resource's address, as the client that asks would write it.
func place(r *http.Request, kind, id string) string {
	scheme := "http"
	if r.TLS != nil || r.Header.Get("X-Forwarded-Proto") == "https" {
		scheme = "https"
	}
	return scheme + "://" + r.Host + base + "/" + kind + "/" + id
}

func showUser(r *http.Request, u identity.SCIMUser) object {
	out := object{
		"schemas": []any{coreUser, enterprise}, "id": u.ID, "userName": u.UserName, "active": u.Active,
		"meta": meta("User", place(r, "Users", u.ID), u.Created, u.Changed, u.Version),
	}
	for name, value := range map[string]string{
		"externalId": u.ExternalID, "displayName": u.DisplayName,
	} {
		if value != "" {
			out[name] = value
		}
	}
	if u.GivenName+u.FamilyName != "" {
		out["name"] = map[string]any{"givenName": u.GivenName, "familyName": u.FamilyName}
	}
	if u.Email != "" {
		out["emails"] = []any{map[string]any{"value": u.Email, "type": "work", "primary": true}}
	}
	if u.ManagerID != "" {
		out[enterprise] = map[string]any{"manager": map[string]any{"value": u.ManagerID}}
	}
	return out
}

// readUser puts an object's attributes into a user. A user whose active is left out stays what they
// are: silence enables nobody.
func readUser(o object, u *identity.SCIMUser) error {
	if u.UserName = o.text("userName"); u.UserName == "" {
		return badRequest("invalidValue", "userName is missing")
	}
	u.ExternalID, u.DisplayName = o.text("externalId"), o.text("displayName")
	u.GivenName, u.FamilyName = o.in("name").text("givenName"), o.in("name").text("familyName")
	u.Email = ""
	for _, e := range o.list("emails") {
		if primary, _ := e.flag("primary"); u.Email == "" || primary {
			u.Email = e.text("value")
		}
	}
	manager := o.in(enterprise)
	if u.ManagerID = manager.in("manager").text("value"); u.ManagerID == "" {
		u.ManagerID = manager.text("manager") // as one provider writes it
	}
	if _, there := o["active"]; !there {
		return nil
	}
	active, known := o.flag("active")
	if !known {
		return badRequest("invalidValue", "active is neither true nor false")
	}
	u.Active = active
	return nil
}

func (h *Handler) listUsers(r *http.Request) (reply, error) {
	all, err := h.people.SCIMUsers(r.Context())
	if err != nil {
		return reply{}, err
	}
	if all, err = chosen(r, all, showUser, "userName", "externalId", "id", "active", "displayName"); err != nil {
		return reply{}, err
	}
	return page(r, all, showUser)
}

// chosen are the resources that the filter of a call fits.
func chosen[T any](r *http.Request, all []T, show func(*http.Request, T) object, known ...string) (
	[]T, error,
) {
	text := r.URL.Query().Get("filter")
	if text == "" {
		return all, nil
	}
	f, err := parseFilter(text)
	if err != nil {
		return nil, err
	}
	ok := false
	for _, name := range known {
		ok = ok || name == f.attr
	}
	if !ok {
		return nil, badRequest("invalidFilter", "%s cannot be filtered by", f.attr)
	}
	out := make([]T, 0, 1)
	for _, x := range all {
		if f.fits(show(r, x)) {
			out = append(out, x)
		}
	}
	return out, nil
}

func (h *Handler) createUser(r *http.Request) (reply, error) {
	o, err := read(r)
	if err != nil {
		return reply{}, err
	}
	u, err := h.people.PutSCIMUser(r.Context(), "", func(u *identity.SCIMUser) error {
		u.Active = true
		return readUser(o, u)
	})
	if err != nil {
		return reply{}, err
	}
	return reply{http.StatusCreated, showUser(r, u), u.Version, place(r, "Users", u.ID)}, nil
}

func userReply(r *http.Request, u identity.SCIMUser, err error) (reply, error) {
	return reply{status: http.StatusOK, body: showUser(r, u), version: u.Version}, err
}

func (h *Handler) getUser(r *http.Request) (reply, error) {
	u, err := h.people.SCIMUser(r.Context(), r.PathValue("id"))
	return userReply(r, u, err)
}

func (h *Handler) putUser(r *http.Request) (reply, error) {
	o, err := read(r)
	if err != nil {
		return reply{}, err
	}
	u, err := h.people.PutSCIMUser(r.Context(), r.PathValue("id"), func(u *identity.SCIMUser) error {
		if err := ifMatch(r, u.Version); err != nil {
			return err
		}
		return readUser(o, u)
	})
	return userReply(r, u, err)
}

func (h *Handler) patchUser(r *http.Request) (reply, error) {
	message, err := read(r)
	if err != nil {
		return reply{}, err
	}
	u, err := h.people.PutSCIMUser(r.Context(), r.PathValue("id"), func(u *identity.SCIMUser) error {
		if err := ifMatch(r, u.Version); err != nil {
			return err
		}
		o := showUser(r, *u)
		if err := patch(o, message); err != nil {
			return err
		}
		return readUser(o, u)
	})
	return userReply(r, u, err)
}

func (h *Handler) deleteUser(r *http.Request) (reply, error) {
	err := h.people.DeleteSCIMUser(r.Context(), r.PathValue("id"))
	return reply{status: http.StatusNoContent}, err
}
