package account

import (
	"fmt"
	"slices"
)

// Rules is what the host's own file says of people: who of the local users is managed, and what
// Curfew accounts look like.
type Rules struct {
	// Gated local users cannot log in without a grant; Elevate ones get only their sudo from Curfew.
	Gated, Elevate []string
	// BreakGlass is the local group whose members Curfew never stands in the way of.
	BreakGlass string
	// UIDMin and UIDMax bound the uids of Curfew accounts, both included.
	UIDMin, UIDMax uint32
	// HomeRoot is the folder of homes, Shell the login shell of Curfew accounts.
	HomeRoot, Shell string
}

// Subject is whom a grant is for on this host.
type Subject struct {
	Class Class
	Login string
	UID   uint32
	GID   uint32
	Home  string
}

// Classify decides what a login is on this host. Whoever exists and is listed nowhere is not
// Curfew's; a listed login that does not exist in /etc/passwd is refused too, since it may be
// somebody's in a directory that is not looked at here.
func (r Rules) Classify(l Local, login string, uid uint32) (Subject, error) {
	user, exists := l.User(login)
	gated, elevate := slices.Contains(r.Gated, login), slices.Contains(r.Elevate, login)
	switch {
	case !exists && (gated || elevate):
		return Subject{}, fmt.Errorf("login %s is listed in /etc/curfew/agent.yaml but does not "+
			"exist in /etc/passwd", login)
	case !exists:
		return r.newAccount(l, login, uid)
	case !gated && !elevate:
		return Subject{}, fmt.Errorf("login %s exists on this host and is not managed by Curfew; "+
			"list it in gated_users or elevate_users of /etc/curfew/agent.yaml", login)
	case user.UID < minID:
		return Subject{}, fmt.Errorf("login %s has the system uid %d, which Curfew never manages",
			login, user.UID)
	case r.exempt(l, login):
		return Subject{}, fmt.Errorf("login %s is in the break-glass group %s, which Curfew never "+
			"manages", login, r.BreakGlass)
	}
	s := Subject{Class: ClassElevate, Login: login, UID: user.UID, GID: user.GID, Home: user.Home}
	if gated {
		s.Class = ClassGated
	}
	return s, nil
}

func (r Rules) newAccount(l Local, login string, uid uint32) (Subject, error) {
	if uid < r.UIDMin || uid > r.UIDMax || uid < minID {
		return Subject{}, fmt.Errorf("uid %d of login %s is outside this host's range %d to %d",
			uid, login, r.UIDMin, r.UIDMax)
	}
	if u, taken := l.UserByUID(uid); taken {
		return Subject{}, fmt.Errorf("uid %d of login %s belongs to the local user %s",
			uid, login, u.Name)
	}
	if g, taken := l.GroupByGID(uid); taken {
		return Subject{}, fmt.Errorf("gid %d of login %s belongs to the local group %s",
			uid, login, g.Name)
	}
	// The private group has the login's name: an account "docker" must not pass for that group.
	if _, taken := l.Group(login); taken {
		return Subject{}, fmt.Errorf("login %s has the name of a local group", login)
	}
	return Subject{
		Class: ClassAccount, Login: login, UID: uid, GID: uid, Home: r.HomeRoot + "/" + login,
	}, nil
}

func (r Rules) exempt(l Local, login string) bool {
	return slices.ContainsFunc(l.MembersOf(r.BreakGlass), func(u LocalUser) bool {
		return u.Name == login
	})
}

// Principals returns everybody that the gate table must name: break-glass first of all, listed
// local users that exist, and every account that a uid was ever given to, live or not, so that a
// process which outlived its account meets a closed gate. uids maps logins to their uids. A listed
// user who cannot be managed (a system uid, two classes behind one uid) is left alone and named in
// the problems.
func (r Rules) Principals(l Local, uids map[string]uint32) (list []Principal, problems []string) {
	classOf := make(map[uint32]Class)
	names := make(map[string]bool)
	add := func(class Class, name string, uid uint32) {
		if have, ok := classOf[uid]; ok && have != class {
			if have != ClassExempt {
				problems = append(problems, fmt.Sprintf(
					"uid %d of %s is %v and %v; it stays %v", uid, name, have, class, have))
			}
			return
		}
		if names[name] || checkMember(name) != nil {
			return
		}
		names[name], classOf[uid] = true, class
		list = append(list, Principal{Class: class, UID: uid, Name: name})
	}
	for _, u := range l.MembersOf(r.BreakGlass) {
		add(ClassExempt, u.Name, u.UID)
	}
	listed := func(class Class, logins []string) {
		for _, name := range logins {
			u, ok := l.User(name)
			switch {
			case !ok:
				problems = append(problems, fmt.Sprintf(
					"%s is listed in /etc/curfew/agent.yaml but does not exist in /etc/passwd", name))
			case u.UID < minID:
				problems = append(problems, fmt.Sprintf(
					"%s is listed in /etc/curfew/agent.yaml but has the system uid %d", name, u.UID))
			default:
				add(class, name, u.UID)
			}
		}
	}
	listed(ClassGated, r.Gated)
	listed(ClassElevate, r.Elevate)
	for login, uid := range uids {
		_, local := l.User(login)
		_, taken := l.UserByUID(uid)
		if !local && !taken && uid >= minID {
			add(ClassAccount, login, uid)
		}
	}
	slices.Sort(problems)
	return list, problems
}
