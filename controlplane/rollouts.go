package controlplane

import (
	"github.com/curfew-access/curfew/controlplane/rollout"
	"github.com/curfew-access/curfew/internal/grant"
)

// said is what a host last said of itself, for rollouts. What it said on an earlier connection is no word
// of what it does now.
func (s *Server) said(id grant.HostID) rollout.Said {
	health, _ := s.hub.Health(id)
	if !health.Connected || !health.Heard {
		return rollout.Said{Connected: health.Connected}
	}
	return rollout.Said{Connected: true, Mode: health.Mode, Report: health.Rollout}
}
