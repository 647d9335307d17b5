package scim

import "net/http"

// What is supported, for clients that ask (RFC 7644, section 4).

func static(body any) (reply, error) { return reply{status: http.StatusOK, body: body}, nil }

func providerConfig(*http.Request) (reply, error) {
	no := map[string]any{"supported": false}
	return static(map[string]any{
		"schemas":        []string{"urn:ietf:params:scim:schemas:core:2.0:ServiceProviderConfig"},
		"patch":          map[string]any{"supported": true},
		"bulk":           map[string]any{"supported": false, "maxOperations": 0, "maxPayloadSize": 0},
		"filter":         map[string]any{"supported": true, "maxResults": maxPage},
		"changePassword": no, "sort": no, "etag": map[string]any{"supported": true},
		"authenticationSchemes": []any{map[string]any{
			"type": "oauthbearertoken", "name": "Bearer token",
			"description": "A token of curfew admin scim token", "primary": true,
		}},
	})
}

func listed(resources ...map[string]any) (reply, error) {
	return static(map[string]any{
		"schemas":      []string{"urn:ietf:params:scim:api:messages:2.0:ListResponse"},
		"totalResults": len(resources), "startIndex": 1, "itemsPerPage": len(resources),
		"Resources": resources,
	})
}

func resourceTypes(*http.Request) (reply, error) {
	const schema = "urn:ietf:params:scim:schemas:core:2.0:ResourceType"
	return listed(map[string]any{
		"schemas": []string{schema}, "id": "User", "name": "User", "endpoint": "/Users",
		"schema":           coreUser,
		"schemaExtensions": []any{map[string]any{"schema": enterprise, "required": false}},
	}, map[string]any{
		"schemas": []string{schema}, "id": "Group", "name": "Group", "endpoint": "/Groups",
		"schema": coreGroup,
	})
}

func attribute(name, kind string, more ...map[string]any) map[string]any {
	a := map[string]any{
		"name": name, "type": kind, "multiValued": false, "required": false, "caseExact": exact[name],
		"mutability": "readWrite", "returned": "default", "uniqueness": "none",
	}
	if len(more) > 0 {
		a["subAttributes"] = more
	}
	return a
}

func many(a map[string]any) map[string]any { a["multiValued"] = true; return a }

func schemas(*http.Request) (reply, error) {
	const schema = "urn:ietf:params:scim:schemas:core:2.0:Schema"
	name := attribute("userName", "string")
	name["required"], name["uniqueness"] = true, "server"
	display := attribute("displayName", "string")
	display["required"] = true
	return listed(map[string]any{
		"schemas": []string{schema}, "id": coreUser, "name": "User", "attributes": []any{
			name, attribute("externalId", "string"), attribute("displayName", "string"),
			attribute("active", "boolean"),
			attribute("name", "complex", attribute("givenName", "string"), attribute("familyName", "string")),
			many(attribute("emails", "complex", attribute("value", "string"), attribute("type", "string"),
				attribute("primary", "boolean"))),
		},
	}, map[string]any{
		"schemas": []string{schema}, "id": enterprise, "name": "EnterpriseUser", "attributes": []any{
			attribute("manager", "complex", attribute("value", "string")),
		},
	}, map[string]any{
		"schemas": []string{schema}, "id": coreGroup, "name": "Group", "attributes": []any{
			display, attribute("externalId", "string"),
			many(attribute("members", "complex", attribute("value", "string"), attribute("type", "string"))),
		},
	})
}
