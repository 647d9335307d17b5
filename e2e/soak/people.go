package soak

import (
	"context"
	"fmt"
	"math/rand/v2"
	"strconv"
	"strings"
	"time"

	"github.com/curfew-access/curfew/e2e/stage"
)

// A visit is one request of a person's for one host, from asking to nothing left.
type visit struct {
	k    *Soak
	p    *stage.Person
	rng  *rand.Rand
	at   place
	role string
	d    time.Duration
	id   string
	end  time.Time // of the newest grant
	over time.Time // when the control plane confirmed an early end
}

// request is what show says of a request.
type request struct {
	State  string `json:"state"`
	Grants []struct {
		GrantID  string  `json:"grant_id"`
		Host     string  `json:"host"`
		Status   string  `json:"status"`
		Detail   string  `json:"detail"`
		EndAt    *string `json:"end_at"`
		EndedAt  *string `json:"ended_at"`
		Revision uint32  `json:"revision"`
	} `json:"grants"`
}

// act visits hosts until the time is over; the visit that is going on is finished.
func (k *Soak) act(ctx context.Context, p *stage.Person) {
	rng := k.rng(p.Name())
	for ctx.Err() == nil {
		v := &visit{
			k: k, p: p, rng: rng,
			at:   place{k.names[rng.IntN(len(k.names))], p.Name()},
			role: []string{"ops", "root", "root", "docs"}[rng.IntN(4)],
			d:    time.Duration(8+rng.IntN(20)) * time.Second,
		}
		if k.short() {
			v.d = (v.d/3 + 4*time.Second).Round(time.Second)
		}
		if rng.IntN(3) == 0 {
			v.d = 10 * time.Minute // somebody ends it
		}
		v.run(context.WithoutCancel(ctx))
	}
}

// run bounds the whole visit. Every draw of the plan is made before anything happens, so that what
// happens does not change the next visit.
func (v *visit) run(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, 4*time.Minute)
	defer cancel()
	fate, deeds, ending := v.rng.IntN(12), v.plan(), v.rng.IntN(4)
	v.k.truth.open(v.at, "") // nobody knows yet what the request will be called
	v.ask(ctx)
	if v.id == "" {
		v.k.truth.close(v.at, "", time.Now())
		return
	}
	v.k.truth.open(v.at, v.id)
	v.k.truth.close(v.at, "", time.Now())
	v.k.count("requests")
	switch fate {
	case 0:
		v.insist(ctx, v.k.bob, "deny", v.id, "--reason", "not today")
	case 1:
		v.insist(ctx, v.p, "withdraw", v.id)
	default:
		if v.insist(ctx, v.k.bob, "approve", v.id, "--yes") && v.applied(ctx) {
			v.k.count("grants")
			for _, deed := range deeds {
				deed(ctx)
			}
			v.finish(ctx, ending)
			v.empty(ctx)
		}
	}
	v.settle(ctx)
}

func (v *visit) ask(ctx context.Context) {
	began := time.Now()
	id, err := v.p.Ask(ctx, v.at.host, v.role, v.d)
	if err != nil && v.k.truth.calm(controlName, began.Add(-time.Second), time.Now(), cut) {
		v.k.find("%s cannot ask for %s: %v", v.at.login, v.at.host, err)
	}
	v.id = id
}

// insist repeats a command while the control plane is away. What it says of a request that is over
// already is no finding: the clock does not wait for people.
func (v *visit) insist(ctx context.Context, p *stage.Person, args ...string) bool {
	for {
		began := time.Now()
		r, err := p.Curfew(ctx, args...)
		switch {
		case err == nil && r.Exit == 0:
			return true
		case ctx.Err() != nil:
			return false
		case err == nil && (strings.Contains(r.Err, "there is nothing to") ||
			strings.Contains(r.Err, "has moved on")):
			return true // an answer was lost on its way back, and this was the second try
		case err == nil && strings.Contains(r.Err, "ended"), err == nil && strings.Contains(r.Err, "over"):
			return false
		case v.k.truth.calm(controlName, began.Add(-time.Second), time.Now(), cut):
			v.k.find("curfew %s by %s: %v %s", strings.Join(args, " "), p.Name(), err, r)
			return false
		}
		time.Sleep(300 * time.Millisecond)
	}
}

// look asks what the request is, and tells the truth where its newest grant ends.
func (v *visit) look(ctx context.Context) (r request, err error) {
	if err = v.p.Query(ctx, &r, "show", v.id); err != nil {
		return r, err
	}
	for _, g := range r.Grants {
		if g.EndAt == nil {
			continue
		}
		if end, err := time.Parse(time.RFC3339, *g.EndAt); err == nil && end.After(v.end) {
			v.end = end
			v.k.truth.until(v.at, v.id, end)
		}
	}
	return r, nil
}

// applied waits for the host's word. A host that nothing disturbs owes it within seconds.
func (v *visit) applied(ctx context.Context) bool {
	began := time.Now()
	var last string
	for time.Since(began) < 45*time.Second {
		r, err := v.look(ctx)
		last = fmt.Sprintf("%v %+v", err, r)
		if err == nil {
			for _, g := range r.Grants {
				if g.Status == "applied" {
					return true
				}
			}
			if r.State == "ended" || strings.Contains(last, "failed") {
				break
			}
		}
		time.Sleep(200 * time.Millisecond)
	}
	if v.undisturbed(began) && time.Since(began) < v.d {
		v.k.slow(began, "%s's request %s was not applied on %s: %s", v.at.login, v.id, v.at.host, last)
	}
	v.insist(ctx, v.k.bob, "revoke", v.id, "--reason", "the host does not answer")
	v.k.truth.close(v.at, v.id, time.Now())
	return false
}

// undisturbed tells whether nothing broke the host since an instant.
func (v *visit) undisturbed(since time.Time) bool {
	return v.k.truth.calm(v.at.host, since, time.Now(), agentDown, hostDown, cut, linkDown)
}

// ssh runs a command by the grant. It must work while the grant lives on a host that runs.
func (v *visit) ssh(ctx context.Context, what, command string) {
	began := time.Now()
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	r, err := v.p.SSH(ctx, v.at.host, command)
	now := time.Now()
	if err == nil && r.Exit == 0 {
		v.k.count(what)
		return
	}
	// A connection that begins shortly before the end meets it half way.
	over := now.Add(time.Second).After(v.end)
	if over || !v.k.truth.calm(v.at.host, began, now, agentDown, hostDown, cut) {
		v.k.count("refused in trouble or at the end")
		return
	}
	v.k.slow(began, "%s on %s by request %s, which ends at %s: %v %s", what, v.at.host, v.id,
		v.end.UTC().Format(time.RFC3339), err, r)
}

// plan draws what the person does under the grant.
func (v *visit) plan() []func(context.Context) {
	var deeds []func(context.Context)
	for range 1 + v.rng.IntN(4) {
		name, command := v.deed(v.rng.IntN(12))
		if name == "" {
			continue
		}
		deeds = append(deeds, func(ctx context.Context) { v.ssh(ctx, name, command) })
	}
	return deeds
}

// deed is what people leave behind: each survives its connection unless somebody ends it.
func (v *visit) deed(n int) (name, command string) {
	const forever = "sleep 86419"
	quiet := " </dev/null >/dev/null 2>&1"
	sudo := "true"
	switch v.role {
	case "root":
		sudo = "sudo -n -i id -u"
	case "ops":
		sudo = "sudo -n /usr/bin/systemctl restart nginx.service"
	}
	switch n {
	case 0, 1:
		return "logins", "id -un; pwd"
	case 2, 3:
		return "elevations", sudo
	case 4:
		return "left by nohup", "nohup " + forever + quiet + " &"
	case 5:
		return "left by setsid", "setsid -f " + forever + quiet
	case 6:
		return "left by a double fork", "( ( " + forever + quiet + " & ) & )"
	case 7:
		return "left in tmux", "tmux new-session -d " + forever
	case 8:
		return "left in a user unit", "systemd-run --quiet --user --collect " + forever
	case 9:
		return "left to at", "echo " + forever + " | at -M now + 1 minute 2>/dev/null"
	case 10:
		return "left to cron", "echo '* * * * * " + forever + "' | crontab -"
	}
	if v.role == "root" {
		return "left by sudo -b", "sudo -n -b " + forever + quiet
	}
	return "logins", "id -un"
}

// finish ends the visit in one of the ways there are.
func (v *visit) finish(ctx context.Context, ending int) {
	long := v.d > time.Minute
	if ending == 0 {
		if v.insist(ctx, v.p, "extend", v.id, "--for", extension.String(), "--reason", "not done", "--no-wait") &&
			v.approveExtension(ctx) {
			v.k.count("extensions")
			v.extended(ctx)
		}
	}
	switch {
	case ending == 1 || long && ending == 0:
		v.insist(ctx, v.k.bob, "revoke", v.id, "--reason", "enough")
		v.k.count("revoked")
	case ending == 2 || long:
		v.insist(ctx, v.p, "done", v.id)
		v.k.count("handed back")
	default:
		time.Sleep(time.Until(v.end))
		v.k.count("expired")
		return
	}
	v.over = time.Now()
	v.k.truth.close(v.at, v.id, v.over)
}

// extended waits until the host says where the extension ends; it may end before it is asked.
func (v *visit) extended(ctx context.Context) {
	old := v.end
	for until := time.Now().Add(10 * time.Second); time.Now().Before(until); {
		r, err := v.look(ctx)
		if err == nil && (v.end.After(old) || r.State == "ended") {
			return
		}
		time.Sleep(200 * time.Millisecond)
	}
}

// settle waits until the control plane knows that the request has ended, and tries the door again.
func (v *visit) settle(ctx context.Context) {
	began := time.Now()
	for {
		r, err := v.look(ctx)
		if err == nil && r.State != "granted" && r.State != "approved" && r.State != "pending" {
			break
		}
		if time.Since(began) > time.Minute && v.undisturbed(began) || ctx.Err() != nil {
			v.k.find("request %s of %s for %s does not end: %v %+v", v.id, v.at.login, v.at.host, err, r)
			break
		}
		time.Sleep(250 * time.Millisecond)
	}
	v.k.truth.close(v.at, v.id, time.Now())
	v.refused(ctx)
}

// empty follows what is left until nothing is, and notes how long that took where nothing disturbed.
func (v *visit) empty(ctx context.Context) {
	for ctx.Err() == nil {
		limit, open := v.k.truth.deadline(v.at)
		now := time.Now()
		left, err := v.left(ctx)
		if err == nil && len(left) == 0 {
			v.k.lag(v, now)
			return
		}
		if err == nil && !open && now.After(limit) {
			return // the watch of the host tells it
		}
		time.Sleep(100 * time.Millisecond)
	}
}

func (v *visit) left(ctx context.Context) ([]trace, error) {
	all, err := traces(ctx, v.k.s.Hosts[v.at.host], v.k.logins)
	if err != nil {
		return nil, err
	}
	var mine []trace
	for _, t := range all {
		if t.login == v.at.login || t.login == "#"+strconv.Itoa(v.k.uids[v.at.login]) {
			mine = append(mine, t)
		}
	}
	return mine, nil
}

// refused tries the door that has closed.
func (v *visit) refused(ctx context.Context) {
	r, err := v.p.SSH(ctx, v.at.host, "true")
	if err == nil && r.Exit == 0 {
		v.k.find("%s logs in to %s after request %s has ended", v.at.login, v.at.host, v.id)
		return
	}
	v.k.count("doors tried after the end")
}

// approveExtension lets the end move before it is approved: the host may know of it before anybody
// here does.
func (v *visit) approveExtension(ctx context.Context) bool {
	v.k.truth.until(v.at, v.id, v.end.Add(extension))
	return v.insist(ctx, v.k.bob, "approve", v.id, "--yes")
}

const extension = 20 * time.Second

// lag notes how long after the end of a visit nothing of it was there any more, where nothing disturbed.
func (k *Soak) lag(v *visit, gone time.Time) {
	end := v.over
	if end.IsZero() || v.end.Before(end) {
		end = v.end
	}
	kinds := []kind{agentDown, hostDown}
	if end.Equal(v.over) {
		kinds = append(kinds, cut, linkDown) // the host had to hear of it
	}
	if !k.truth.calm(v.at.host, end.Add(-time.Second), gone, kinds...) {
		return
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	k.lags = append(k.lags, gone.Sub(end))
}
