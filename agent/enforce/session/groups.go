package session

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"slices"
	"strconv"

	"golang.org/x/sys/unix"

	"github.com/curfew-access/curfew/agent/enforce/session/process"
	"github.com/curfew-access/curfew/agent/folder"
	"github.com/curfew-access/curfew/internal/grant"
	"github.com/curfew-access/curfew/internal/trail"
	curfewv1 "github.com/curfew-access/curfew/proto/curfew/v1"
)

// A gid that a grant gave outlives it where somebody left a setgid copy of a program: whoever runs the
// copy holds the gid. So processes that hold a given gid without a right to it die, every 30 s and
// right after each end. The rule errs on the side of life, since a wrong guess kills a daemon:
//
//   - A Curfew account holds a given gid by its live grants and by nothing else.
//   - Root and system users (a uid below 1000 among the four) are never touched: they need no grant to
//     hold any gid, and what root runs under a grant is in the grant's kill set already.
//   - Of everybody else only who holds it as a gid and not among the supplementary groups. Those need
//     root to be set (login, newgrp, pam_group, a unit's SupplementaryGroups=), while running a setgid
//     program gives exactly the gid.
//   - Not who may hold it by /etc/passwd and /etc/group, nor break-glass (Config.MayHold).
//   - Not what runs, or descends from, a setgid program of that group that belongs to root or a system
//     user: the host's own, such as crontab or ssh-agent.
//   - Not what ran before the gid was given for the first time.

// givenFile keeps since when which gids were given, for an agent that is restarted.
const givenFile = "groups.json"

// given is when each gid was first given on this boot, in ticks of processes' start times. A gid that
// is over stays: what was left behind may be run at any time.
type given struct {
	BootID string            `json:"boot_id"`
	Since  map[uint32]uint64 `json:"since"`
}

// maxGiven bounds the file.
const maxGiven = 4096

func readGiven(dir *folder.Folder, bootID string) (given, error) {
	fresh := given{BootID: bootID, Since: make(map[uint32]uint64)}
	data, err := dir.Read(givenFile, maxRecord*16)
	if errors.Is(err, fs.ErrNotExist) {
		return fresh, nil
	}
	var g given
	if err == nil {
		err = json.Unmarshal(data, &g)
	}
	if err != nil {
		return fresh, fmt.Errorf("which gids were given: %w", err)
	}
	if g.BootID != bootID || g.Since == nil {
		return fresh, nil
	}
	return g, nil
}

// give notes the gids of live grants, durably for this boot.
func (m *Manager) give(live []Live) {
	m.mu.Lock()
	added := false
	for _, l := range live {
		for _, gid := range l.GIDs {
			if _, known := m.given.Since[gid]; !known && len(m.given.Since) < maxGiven {
				m.given.Since[gid] = uint64(m.cfg.Clock().Boot.Milliseconds() / (1000 / ticksPerSecond))
				added = true
			}
		}
	}
	data, err := json.Marshal(m.given)
	m.mu.Unlock()
	if !added {
		return
	}
	m.files.Lock()
	defer m.files.Unlock()
	if err == nil {
		err = m.dir.Write(givenFile, folder.File{Data: data, Mode: 0o600})
	}
	m.problem("given gids", err)
}

// ticksPerSecond is USER_HZ, which is 100 on every Linux that Go runs on (proc(5), field 22 of stat).
const ticksPerSecond = 100

// holding is what the rule needs to know at one moment.
type holding struct {
	since map[uint32]uint64
	own   map[uint32][]uint32 // gids of live grants, by uid of a Curfew account
}

func (m *Manager) holding() holding {
	m.mu.Lock()
	defer m.mu.Unlock()
	h := holding{since: maps.Clone(m.given.Since), own: make(map[uint32][]uint32)}
	for _, l := range m.live {
		if m.ownUID(l.UID) {
			h.own[l.UID] = append(h.own[l.UID], l.GIDs...)
		}
	}
	return h
}

// overheld returns a given gid that a process holds without a right to it.
func (m *Manager) overheld(p process.Process, all map[int]process.Process, h holding) (uint32, bool) {
	if p.Dead() || m.protected(p.PID) {
		return 0, false
	}
	for gid, since := range h.since {
		held := p.HasGID(gid)
		if !held && !p.InGroup(gid) {
			continue
		}
		if uid, ok := m.accountOf(p); ok {
			if !slices.Contains(h.own[uid], gid) {
				return gid, true
			}
			continue
		}
		if held && !p.InGroup(gid) && p.StartTicks >= since && m.stranger(p, gid) &&
			!fromSetgid(p, all, gid) {
			return gid, true
		}
	}
	return 0, false
}

// accountOf returns the Curfew account that a process is of, when nothing of it is a system user's.
func (m *Manager) accountOf(p process.Process) (uint32, bool) {
	if slices.ContainsFunc(p.UIDs[:], func(uid uint32) bool { return uid < firstPerson }) {
		return 0, false // its scope ends it
	}
	i := slices.IndexFunc(p.UIDs[:], m.ownUID)
	if i < 0 {
		return 0, false
	}
	return p.UIDs[i], true
}

// stranger tells that nobody among a process's uids may hold the gid by the host's own files.
func (m *Manager) stranger(p process.Process, gid uint32) bool {
	return !slices.ContainsFunc(p.UIDs[:], func(uid uint32) bool {
		return uid < firstPerson || m.cfg.MayHold != nil && m.cfg.MayHold(uid, gid)
	})
}

// fromSetgid tells whether a process, or what it descends from, runs the host's own setgid program of
// a group.
func fromSetgid(p process.Process, all map[int]process.Process, gid uint32) bool {
	for range maxAncestry {
		var st unix.Stat_t
		err := unix.Stat("/proc/"+strconv.Itoa(p.PID)+"/exe", &st)
		if err == nil && st.Mode&unix.S_ISGID != 0 && st.Gid == gid && st.Uid < firstPerson {
			return true
		}
		parent, ok := all[p.PPID]
		if !ok || parent.PID <= 1 || !parent.HasGID(gid) {
			return false
		}
		p = parent
	}
	return false
}

// EndOldGIDs kills what holds a given gid without a right to it, until two looks find nothing. The
// agent calls it after each end; the sweep does every 30 s.
func (m *Manager) EndOldGIDs(ctx context.Context) {
	m.mu.Lock()
	known := m.published && len(m.given.Since) > 0
	m.mu.Unlock()
	if !known {
		return
	}
	const rounds = 100 // a bomb forks faster than one look; its scope or uid ends it otherwise
	told := 0
	for clean := 0; clean < cleanPasses && told < rounds; told++ {
		if m.oldGIDs(ctx, told < maxShown) == 0 {
			clean++
		} else {
			clean = 0
		}
	}
}

func (m *Manager) oldGIDs(ctx context.Context, tell bool) (killed int) {
	list, err := process.All()
	if err != nil {
		m.cfg.Log.Warn("looking for old gids", "error", err)
	}
	all := make(map[int]process.Process, len(list))
	for _, p := range list {
		all[p.PID] = p
	}
	h := m.holding()
	for _, p := range list {
		gid, over := m.overheld(p, all, h)
		if !over {
			continue
		}
		killed++
		if err := process.Kill(p); err != nil {
			m.cfg.Log.Error("killing a process with an old gid", "pid", p.PID, "error", err)
			continue
		}
		m.cfg.Log.Warn("a process held a gid that was only granted", "pid", p.PID, "comm", p.Comm,
			"uid", p.RealUID(), "gid", gid)
		if tell && killed <= maxShown {
			m.tellOldGID(ctx, p, gid)
		}
	}
	return killed
}

func (m *Manager) tellOldGID(ctx context.Context, p process.Process, gid uint32) {
	ctx, cancel := context.WithTimeout(ctx, recordLimit)
	defer cancel()
	err := m.cfg.Events.Record(ctx, &curfewv1.Event{
		Kind: trail.KindProcessKilled, Details: map[string]string{
			"pid": strconv.Itoa(p.PID), "comm": grant.VisibleText(p.Comm),
			"uid": strconv.FormatUint(uint64(p.RealUID()), 10),
			"gid": strconv.FormatUint(uint64(gid), 10),
			"why": "it held a gid that only a grant had given",
		},
	})
	if err != nil {
		m.cfg.Log.Error("recording a killed process", "pid", p.PID, "error", err)
	}
}
