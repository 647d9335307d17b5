package controlplane

import (
	"context"
	"os"
	"path/filepath"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/curfew-access/curfew/controlplane/store"
	"github.com/curfew-access/curfew/controlplane/stream"
	"github.com/curfew-access/curfew/internal/metrics"
	curfewv1 "github.com/curfew-access/curfew/proto/curfew/v1"
)

// backupStamp is an empty file in the data folder; its time is that of the last backup.
const backupStamp = "backup.stamp"

// readFigures is how long a scrape waits for the store.
const readFigures = 5 * time.Second

// grantWords are how live grants stand, by what their host said last.
var grantWords = map[curfewv1.GrantStatus]string{
	curfewv1.GrantStatus_GRANT_STATUS_UNSPECIFIED: "unconfirmed",
	curfewv1.GrantStatus_GRANT_STATUS_APPLIED:     "applied",
	curfewv1.GrantStatus_GRANT_STATUS_FAILED:      "failed",
	curfewv1.GrantStatus_GRANT_STATUS_REJECTED:    "rejected",
	curfewv1.GrantStatus_GRANT_STATUS_MISSING:     "missing",
}

// modeWords are the modes of hosts; any other word counts as the last.
var modeWords = map[string]string{"observe": "observe", "enforce": "enforce", "enforce, on trial": "trial", "": "unknown"}

// standing reads, at each scrape, how things stand.
type standing struct {
	store *store.Store
	hub   *stream.Hub
	// stale is how long a host may be silent: from then on it opens nothing new.
	stale   time.Duration
	clock   func() time.Time
	dataDir string
	// certificates are when the CA and the server's certificate end.
	certificates func() (ca, server time.Time)
}

func described(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc(name, help, labels, nil)
}

var (
	descStoreUp = described("curfew_store_up", "Whether the store answers; without it what it knows is missing.")
	descWaiting = described("curfew_requests_waiting", "Requests that wait for decisions.")
	descUnissue = described("curfew_requests_unissued", "Approved requests that have no grants yet.")
	descGrants  = described("curfew_issued_grants_live", "Grants that are live, by what their host said of them.", "status")
	descKnown   = described("curfew_hosts_known", "Enrolled hosts.")
	descConn    = described("curfew_hosts_connected", "Hosts that are connected.")
	descStale   = described("curfew_hosts_stale",
		"Hosts that were not heard for longer than their lease: they open nothing new.")
	descRefused = described("curfew_hosts_refused", "Hosts that are refused until they are enrolled anew.")
	descMode    = described("curfew_hosts_mode", "Hosts by mode.", "mode")
	descRollout = described("curfew_rollouts", "Staged rollouts of enforcing that are open.", "state")
	descOutbox  = described("curfew_outbox_waiting", "Messages that wait for their receiver.", "way")
	descOldest  = described("curfew_outbox_oldest_seconds", "How old the oldest message is that waits.")
	descTrust   = described("curfew_trust_version", "The version of the trust file in force.")
	descUnsign  = described("curfew_trust_waiting", "Whether a trust file waits for signatures of root keys.")
	descRecords = described("curfew_trail_records_total", "Records on the trail.")
	descCA      = described("curfew_ca_certificate_end_timestamp_seconds", "When the CA ends.")
	descServer  = described("curfew_server_certificate_end_timestamp_seconds",
		"When the server's certificate ends; it is renewed after two thirds of its time.")
	descHostEnd = described("curfew_host_certificate_end_timestamp_seconds",
		"When the first certificate of a host ends; hosts renew theirs.")
	descBackup = described("curfew_backup_timestamp_seconds", "When the last backup was made; missing for none.")
)

// Describe implements prometheus.Collector.
func (n standing) Describe(out chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{
		descStoreUp, descWaiting, descUnissue, descGrants, descKnown, descConn, descStale, descRefused,
		descMode, descRollout, descOutbox, descOldest, descTrust, descUnsign, descRecords, descCA, descServer,
		descHostEnd, descBackup,
	} {
		out <- d
	}
}

// Collect implements prometheus.Collector.
func (n standing) Collect(out chan<- prometheus.Metric) {
	gauge := func(d *prometheus.Desc, v float64, labels ...string) {
		out <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
	}
	ca, server := n.certificates()
	gauge(descCA, unix(ca))
	gauge(descServer, unix(server))
	if info, err := os.Stat(filepath.Join(n.dataDir, backupStamp)); err == nil {
		gauge(descBackup, unix(info.ModTime()))
	}
	ctx, cancel := context.WithTimeout(context.Background(), readFigures)
	defer cancel()
	f, err := n.store.Figures(ctx)
	gauge(descStoreUp, metrics.Flag(err == nil))
	if err != nil {
		return
	}
	gauge(descWaiting, float64(f.Waiting))
	gauge(descUnissue, float64(f.Unissued))
	for status, word := range grantWords {
		gauge(descGrants, float64(f.Grants[status]), word)
	}
	gauge(descRollout, float64(f.Running), "running")
	gauge(descRollout, float64(f.Paused), "paused")
	gauge(descOutbox, float64(f.Mails), "mail")
	gauge(descOutbox, float64(f.Webhooks), "webhook")
	age := time.Duration(0)
	if !f.Oldest.IsZero() {
		age = max(n.clock().Sub(f.Oldest), 0)
	}
	gauge(descOldest, age.Seconds())
	gauge(descTrust, float64(f.TrustVersion))
	gauge(descUnsign, metrics.Flag(f.TrustWaiting))
	out <- prometheus.MustNewConstMetric(descRecords, prometheus.CounterValue, float64(f.Records))
	n.hosts(f.Hosts, gauge)
}

// hosts tells how the fleet stands: what the store remembers, with what was heard since.
func (n standing) hosts(hosts []store.HostFigures, gauge func(*prometheus.Desc, float64, ...string)) {
	var connected, stale, refused int
	var firstEnd time.Time
	modes := make(map[string]int)
	for _, h := range hosts {
		here, seen, heard := n.hub.Last(h.ID)
		mode, last := h.Mode, h.LastSeen
		if heard {
			last = seen.At
			if seen.Mode != "" {
				mode = seen.Mode
			}
		}
		word, known := modeWords[mode]
		if !known {
			word = modeWords[""]
		}
		modes[word]++
		switch {
		case h.Refused:
			refused++
			continue
		case here:
			connected++
		case n.clock().Sub(last) > n.stale:
			stale++
		}
		if firstEnd.IsZero() || h.CertificateEnd.Before(firstEnd) {
			firstEnd = h.CertificateEnd
		}
	}
	gauge(descKnown, float64(len(hosts)))
	gauge(descConn, float64(connected))
	gauge(descStale, float64(stale))
	gauge(descRefused, float64(refused))
	for _, word := range modeWords {
		gauge(descMode, float64(modes[word]), word)
	}
	if !firstEnd.IsZero() {
		gauge(descHostEnd, unix(firstEnd))
	}
}

func unix(t time.Time) float64 { return float64(t.Unix()) }

// stamp notes that a backup was made now, for the server beside.
func stamp(dir string, at time.Time) error {
	f, err := os.CreateTemp(dir, "."+backupStamp+"-*")
	if err != nil {
		return err
	}
	if err := f.Close(); err != nil {
		return err
	}
	if err := os.Chtimes(f.Name(), at, at); err != nil {
		return err
	}
	return os.Rename(f.Name(), filepath.Join(dir, backupStamp))
}
