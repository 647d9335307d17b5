package journal

// A Message is what is told of one kind of event. Its text is the first line of its entry in the
// catalogue, packaging/catalog/curfew.catalog, which says more: journalctl -x.
type Message struct {
	Kind string
	// ID is the journal's MESSAGE_ID. It never changes and is never used for anything else.
	ID   string
	Text string
	// Warn: somebody should look.
	Warn bool
}

// Messages are all of them. Kinds are those of the trail where it has them.
var Messages = []Message{
	// A grant's life on its host.
	{"grant.accepted", "5792440a67564f97ba8afded6c0059e5", "A grant is accepted", false},
	{"grant.rejected", "57adb2f7794343cc9f1a2a56c4f6bb34", "A grant is refused", true},
	{"grant.applied", "93feb10aeecb43a2981284fb37d653df", "A grant is in force", false},
	{"grant.started", "1ea86bb3d81c4dcd8128ec9291d83d75", "A grant's time has begun", false},
	{"grant.failed", "3ffb04dd44824373ae2075555fbc8276", "A grant could not be put into force", true},
	{"grant.ended", "37b6721d527344d3ab040c5fa4e734f1", "A grant has ended", false},
	{"grant.purged", "b9876e2c252a4d2682483b0ee71e276d", "Everything of a grant is gone", false},
	{"grant.residue", "fea2c3d75ff8461984df09363aba6d35", "An ended grant may have left something", false},
	{"grant.left_behind", "6ae5b583a56b4cc988f53a89811b204f", "A root-equivalent grant left something behind", true},
	// Logins and elevations.
	{"login.denied", "62dc457b22194f3bba1b14d11e0641cc", "A login is refused", true},
	{"sudo.denied", "8869e8d2b4ce4c1489ac159448435988", "An elevation is refused", true},
	{"gate.would_deny", "c8b3dea0a0fe495995f7bec351a4a09f", "Enforcing would refuse this", true},
	{"session.opened", "1616cdda63f242ecbfb62833bc6ce302", "A session has begun", false},
	{"session.elevated", "c0cd99c3728c42f1b254b3a9c87d619e", "An elevation has begun", false},
	{"session.closed", "efadce2a83764e7986a98618174ad925", "A session has ended", false},
	{"session.killed", "37b818bbe0974485877d38a462c4ded0", "Sessions were ended", true},
	{"process.killed", "2bd57f6a78f24cd38a05bcd6d58ad84c", "A process was ended that had outlived its grant", true},
	{"host.root_manager", "f3f1ad9f0aa04b5abe874920a7307557", "A manager of root's runs under a grant", true},
	// Break-glass.
	{"break_glass.used", "79880a58219e4ce394a67b7274f254b0", "A break-glass code opened access", true},
	{"break_glass.refused", "fd1e452b62ce4dce98e502764577f998", "A break-glass code was refused", true},
	{"break_glass.renewed", "a00f6b0466374e5a95dd3451de5793b4", "New break-glass codes are in force", false},
	{"break_glass.fetched", "12a1ba06884643eab6a90de65585dbb9", "A break-glass code was fetched", true},
	{"break_glass.rotation_asked", "1e6f2644ef184c00805aee6cfc16abe9", "New break-glass codes were asked for", false},
	{"break_glass.held", "226b428a1c1b4403914b31f63e232585", "Sealed break-glass codes were handed in", false},
	// The host.
	{"agent.started", "1118f48617c64c578c7ea111274c1a31", "The root half has started", false},
	{"agent.stopped", "3fc83fe9984d405a8f11b1fb17f4b2a2", "The root half has stopped", false},
	{"host.mode", "6515dc7e988d4b3797bc8d61bf81a14b", "The host's mode was switched", true},
	{"config.rejected", "dd14df2e93ce40b59037376ab1255a66", "The host's settings are refused", true},
	{"lease.warning", "022131f75f9845d99c27d7ae2984167d", "Half of the lease is over", true},
	{"lease.expired", "678fa25d45c2465d9cd7c8b25078394b", "The lease is over: nothing new opens", true},
	{"lease.renewed", "e99e36c763d148e59d638ef93dd66934", "The control plane is heard again", false},
	{"state.rejected", "8e1094acd6a84aba92f7d6426e25bb35", "A host state is refused", true},
	{"trust.accepted", "a03795373417436187fdcb19c1f87a96", "A trust file is in force", false},
	{"trust.rejected", "da583bafb9cb42afa79c8c8092b10866", "A trust file is refused", true},
	{"clock.jumped", "9811266528b8429ea9d69ee1936776e7", "The clock was set", true},
	{"drift.repaired", "7831ba1febd34fe1af3ae8a53b9b6c76", "A changed file was put right", true},
	{"events.lost", "4e8c9b2c0c5f468987993e30b453bfe4", "Events were left out", true},
	{"host.problem", "b41ae67d23554d708b53c777142e60db", "Something is wrong on the host", true},
	{"host.joined", "bd1d4f32b90346b6b66b319c5d73b611", "The host has joined", false},
	{"host.left", "b7bf46e830c6455ea29b46fde010c8e7", "The host is being left", false},
	// Requests.
	{"request.created", "dff0a859e8db43098b6f368536364946", "A request was made", false},
	{"request.extension", "0d38848dc90a40cc984a5c069e34db13", "More time was asked for", false},
	{"request.edited", "91be51561425450fa1e94f6c9ad7d3d4", "A request was edited", false},
	{"request.approval", "2f16dddae7a546aca666d9a33d093443", "An approval was given", false},
	{"request.approved", "529ed1d0fb6d47a6bc81fdc36ac4ecd5", "A request is approved", false},
	{"request.denied", "9dfb88687e984dacb11d481e7c641400", "A request was denied", false},
	{"request.withdrawn", "84bf0068a3d44f14bc25223567640391", "A request was withdrawn", false},
	{"request.lapsed", "802c9e3351814ddc82656b86044deeec", "A request has lapsed", false},
	{"request.granted", "baaed7f3d4884f5cbfa0a346b8701691", "A request is granted", false},
	{"grant.issued", "dd0dad505ddf4ff787c95996dafde708", "A grant was sealed", false},
	{"request.ended", "0b9cf686320f41548c2223692fadf97f", "A request has ended", false},
	{"request.reviewed", "4d2d93c82b6c4d19bbbf9a2bd60e492d", "An emergency was reviewed", false},
	// The fleet and its keepers.
	{"host.token_created", "b0d59f3a19e54f029c71bcaa641fdf55", "A join token was made", false},
	{"host.enrolled", "4188d1a9a4034b42b3f16e12003827c1", "A host has joined", false},
	{"host.removed", "a20621cf7ade4bc3b23fb46d2eb6e978", "A host was removed", false},
	{"host.refused", "5399f15c5e6a4fc090d01f1139654456", "A host is refused", true},
	{"host.clone_noticed", "54d80977ba0d47b4a271a364f3e33d2c", "Two machines have one key", true},
	{"host.bad_message", "153a02f6320c4582b2f9f1fe4829100c", "A message of a host is forged", true},
	{"host.events_lost", "68c928e983964ec1b375812d857dfaa3", "Events of a host are lost", true},
	{"signin.refused", "f0431bcd0cdc48dea9f9dee951235ff8", "A sign-in was refused", true},
	{"policy.applied", "4a0ba5392cf44c69a778e6cca5d5f14a", "A policy is in force", false},
	{"policy.cleared", "e7f4358167374af18939f9231a2da1d0", "The policy was taken away", true},
	{"trust.signed", "c12d0d90567843f59615660b9216d843", "A trust file is signed", false},
	{"trust.waiting", "5cff757e6e6b48ed8c91bb46c4f84fa8", "A trust file waits for root keys", false},
	{"notify.undeliverable", "06dae1705d1746068cd76557d08e4815", "A message was given up", true},
	{"store.restored", "6bbbfdf73ed14b8fb06d7507121836a3", "The control plane was restored", true},
}
