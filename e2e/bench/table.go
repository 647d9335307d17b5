package main

import "context"

// A row measures and prints one or more lines.
type row struct {
	name string
	run  func(context.Context, *Bench) error
}

// rows in the order in which they run. Those that need hosts share them: see lab.
var rows = []row{
	{"memory", memory},
	{"pam_account", pamAccount},
	{"approve_to_enforced revoke_to_dead", approveAndRevoke},
	{"ssh_login", sshLogin},
	{"sudo_true", sudoTrue},
	{"sudo_scope", sudoScope},
	{"expiry_lag", expiryLag},
	{"nss_getpwnam expire_1000 memory_1000", thousand},
	{"idle", idle},
	{"policy_decide", policyDecide},
	{"request_cycle", requestCycle},
	{"terms_verify", termsVerify},
}
