package gate

import "github.com/curfew-access/curfew/agent/enforce/account"

// treatment is what the gate does with a question.
type treatment uint8

const (
	// ignore: none of Curfew's business.
	ignore treatment = iota
	// login: needs a live grant that allows logins; opening one is a session of its own.
	login
	// inside: needs the same, but opens no session: it runs within one, or for one.
	inside
	// elevate: needs a live grant with a sudo rule.
	elevate
	// never: not even with a grant.
	never
)

// others stands for every PAM service that the table does not name.
const others = ""

// rules is who is gated where. What is not in it is ignored: people without a class are nobody's
// business, and exempt people pass everywhere.
var rules = map[string]map[account.Class]treatment{
	"sshd":  {account.ClassAccount: login, account.ClassGated: login},
	"login": {account.ClassAccount: login, account.ClassGated: login},
	// su stays in its caller's session, whose end is its end; see subjects for who is asked about.
	"su":   {account.ClassAccount: inside, account.ClassGated: inside},
	"su-l": {account.ClassAccount: inside, account.ClassGated: inside},
	"sudo": {
		account.ClassAccount: elevate, account.ClassGated: elevate, account.ClassElevate: elevate,
	},
	"sudo-i": {
		account.ClassAccount: elevate, account.ClassGated: elevate, account.ClassElevate: elevate,
	},
	// Nothing of an account's may be waiting for its time; a local user's jobs run inside a grant.
	"cron":  {account.ClassAccount: never, account.ClassGated: inside},
	"crond": {account.ClassAccount: never, account.ClassGated: inside},
	"atd":   {account.ClassAccount: never, account.ClassGated: inside},
	// The user's manager, which a login starts.
	"systemd-user": {account.ClassAccount: inside, account.ClassGated: inside},
	others:         {account.ClassAccount: login, account.ClassGated: login},
}

func treat(service string, class account.Class) treatment {
	row, ok := rules[service]
	if !ok {
		row = rules[others]
	}
	return row[class]
}

// asksOwner tells whether an answer can depend on the request that the caller runs under already. A login
// runs under none.
func asksOwner(service string) bool {
	for _, class := range []account.Class{account.ClassAccount, account.ClassGated, account.ClassElevate} {
		if t := treat(service, class); t == inside || t == elevate {
			return true
		}
	}
	return false
}

// byRealUID are the services whose subject is whoever called, not whom PAM_USER names: there it is
// the target.
var byRealUID = map[string]bool{"sudo": true, "sudo-i": true, "su": true, "su-l": true}

// targetToo are those where becoming the target is also an access to the target.
var targetToo = map[string]bool{"su": true, "su-l": true}

func isSudo(service string) bool { return service == "sudo" || service == "sudo-i" }
