package soak

import (
	"context"
	"time"

	"github.com/curfew-access/curfew/e2e/world"
)

// lookEvery is how often a host is looked at while people act.
const lookEvery = time.Second

// watch looks at a host again and again, and demands that everything there belongs to somebody whose
// time is not over. What it sees too late is told once.
func (k *Soak) watch(ctx context.Context, h *world.Host) {
	told := make(map[trace]bool)
	for ctx.Err() == nil {
		began := time.Now()
		seen, err := traces(ctx, h, k.logins)
		if err == nil {
			k.count("looks at hosts")
			for _, t := range seen {
				k.judge(h.Name(), t, began, told)
			}
		}
		select {
		case <-ctx.Done():
		case <-time.After(lookEvery):
		}
	}
}

// judge finds fault with a trace that was there at an instant at which it might not be.
func (k *Soak) judge(host string, t trace, at time.Time, told map[trace]bool) {
	limit, open := k.truth.deadline(place{host, t.login})
	if open || !at.After(limit) || told[t] {
		return
	}
	told[t] = true
	if limit.IsZero() {
		k.find("%s: %s of %s, who never had a grant here", host, t.what, t.login)
		return
	}
	k.find("%s: %s of %s is there %s after it had to be gone (%s)", host, t.what, t.login,
		at.Sub(limit).Round(time.Millisecond), limit.UTC().Format("15:04:05.000"))
}

// localsGetIn has the local admin, who uses sudo, and the break-glass user log in to one host after
// the other. Only a host that is off or cut off excuses a refusal.
func (k *Soak) localsGetIn(ctx context.Context) {
	rng := k.rng("locals")
	for ctx.Err() == nil {
		host := k.names[rng.IntN(len(k.names))]
		login, command := "lou", "sudo -n /usr/bin/id -u"
		if rng.IntN(2) == 0 {
			login, command = "rescue", "id -un"
		}
		began := time.Now()
		limited, cancel := context.WithTimeout(context.WithoutCancel(ctx), 30*time.Second)
		r, err := k.lou.Command(limited, "ssh", "-o", "BatchMode=yes", "-o", "ConnectTimeout=20",
			login+"@"+host, command)
		cancel()
		if err == nil && r.Exit == 0 {
			k.count("logins of locals")
		} else if k.truth.calm(host, began, time.Now(), hostDown) && k.plugged(host, began) {
			k.slow(began, "%s cannot log in to %s: %v %s", login, host, err, r)
		}
		select {
		case <-ctx.Done():
		case <-time.After(500 * time.Millisecond):
		}
	}
}

// plugged tells whether the host's own cable was in since an instant.
func (k *Soak) plugged(host string, since time.Time) bool {
	return k.truth.calm(host+" cable", since, time.Now(), cut)
}

// slow is find for what must not take long: on a machine that stood still meanwhile nothing can be
// said, and that is counted.
func (k *Soak) slow(since time.Time, format string, args ...any) {
	if k.truth.worst(since, time.Now()) > time.Second {
		k.count("not judged: the machine stood still")
		return
	}
	k.find(format, args...)
}
