package scim

import (
	"net/http"
	"slices"
	"strings"

	"github.com/curfew-access/curfew/controlplane/identity"
)

func showGroup(r *http.Request, g identity.SCIMGroup) object {
	out := object{
		"schemas": []any{coreGroup}, "id": g.ID, "displayName": g.DisplayName,
		"meta": meta("Group", place(r, "Groups", g.ID), g.Created, g.Changed, g.Version),
	}
	if g.ExternalID != "" {
		out["externalId"] = g.ExternalID
	}
	if strings.Contains(r.URL.Query().Get("excludedAttributes"), "members") {
		return out
	}
	return withMembers(out, g)
}

func withMembers(out object, g identity.SCIMGroup) object {
	members := make([]any, 0, len(g.Members))
	for _, id := range g.Members {
		members = append(members, map[string]any{"value": id, "type": "User"})
	}
	out["members"] = members
	return out
}

func readGroup(o object, g *identity.SCIMGroup) error {
	if g.DisplayName = o.text("displayName"); g.DisplayName == "" {
		return badRequest("invalidValue", "displayName is missing")
	}
	g.ExternalID = o.text("externalId")
	g.Members = nil
	for _, m := range o.list("members") {
		id := m.text("value")
		if id == "" {
			return badRequest("invalidValue", "a member has no value")
		}
		if strings.EqualFold(m.text("type"), "Group") {
			return badRequest("invalidValue", "groups in groups are not known here")
		}
		if !slices.Contains(g.Members, id) {
			g.Members = append(g.Members, id)
		}
	}
	return nil
}

func (h *Handler) listGroups(r *http.Request) (reply, error) {
	all, err := h.people.SCIMGroups(r.Context())
	if err != nil {
		return reply{}, err
	}
	if all, err = chosen(r, all, showGroup, "displayName", "externalId", "id"); err != nil {
		return reply{}, err
	}
	return page(r, all, showGroup)
}

func (h *Handler) createGroup(r *http.Request) (reply, error) {
	o, err := read(r)
	if err != nil {
		return reply{}, err
	}
	g, err := h.people.PutSCIMGroup(r.Context(), "", func(g *identity.SCIMGroup) error {
		return readGroup(o, g)
	})
	if err != nil {
		return reply{}, err
	}
	return reply{http.StatusCreated, showGroup(r, g), g.Version, place(r, "Groups", g.ID)}, nil
}

func groupReply(r *http.Request, g identity.SCIMGroup, err error) (reply, error) {
	return reply{status: http.StatusOK, body: showGroup(r, g), version: g.Version}, err
}

func (h *Handler) getGroup(r *http.Request) (reply, error) {
	g, err := h.people.SCIMGroup(r.Context(), r.PathValue("id"))
	return groupReply(r, g, err)
}

func (h *Handler) putGroup(r *http.Request) (reply, error) {
	o, err := read(r)
	if err != nil {
		return reply{}, err
	}
	g, err := h.people.PutSCIMGroup(r.Context(), r.PathValue("id"), func(g *identity.SCIMGroup) error {
		if err := ifMatch(r, g.Version); err != nil {
			return err
		}
		return readGroup(o, g)
	})
	return groupReply(r, g, err)
}

func (h *Handler) patchGroup(r *http.Request) (reply, error) {
	message, err := read(r)
	if err != nil {
		return reply{}, err
	}
	g, err := h.people.PutSCIMGroup(r.Context(), r.PathValue("id"), func(g *identity.SCIMGroup) error {
		if err := ifMatch(r, g.Version); err != nil {
			return err
		}
		o := withMembers(showGroup(r, *g), *g)
		if err := patch(o, message); err != nil {
			return err
		}
		return readGroup(o, g)
	})
	return groupReply(r, g, err)
}

func (h *Handler) deleteGroup(r *http.Request) (reply, error) {
	err := h.people.DeleteSCIMGroup(r.Context(), r.PathValue("id"))
	return reply{status: http.StatusNoContent}, err
}
