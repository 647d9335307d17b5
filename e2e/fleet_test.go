package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/curfew-access/curfew/e2e/stage"
	"github.com/curfew-access/curfew/e2e/world"
	"github.com/curfew-access/curfew/internal/cloudtest"
)

// metadata stands where an instance's metadata service stands. It and its documents are fixtures.
var metadata = netip.MustParseAddrPort("169.254.169.254:80")

// route is what an instance's network has by itself.
const route = `ip route add 169.254.169.254 dev "$(ip -o route get 10.99.0.1 | sed 's/.* dev \([^ ]*\).*/\1/')"`

// fleet is a stage whose control plane admits the fixtures' instances of AWS and Azure.
func fleet(t *testing.T) (*story, *cloudtest.Clouds) {
	c := cloudtest.New(t, time.Now)
	s := tell(t, stage.Options{
		Hosts: []string{},
		Control: `cloud_join:
  aws: {certificates: /etc/curfew/aws.pem, accounts: ["` + cloudtest.Account + `"]}
  azure: {subscriptions: [` + cloudtest.Subscription + `], roots: /etc/curfew/root.pem, intermediates: /etc/curfew/azure.pem}
`,
		ControlFiles: map[string]string{
			"/etc/curfew/aws.pem":   string(cloudtest.PEM(c.AWSCert)),
			"/etc/curfew/azure.pem": string(cloudtest.PEM(c.Middle)),
			"/etc/curfew/root.pem":  string(cloudtest.PEM(c.Root)),
		},
	})
	return s, c
}

// vouch begins to serve the metadata of instances.
func (s *story) vouch(c *cloudtest.Clouds) {
	s.t.Helper()
	listener, err := s.Listen(s.ctx, metadata)
	s.ok(err)
	server := &http.Server{Handler: c.Metadata(s.t), ReadHeaderTimeout: 10 * time.Second}
	go func() { _ = server.Serve(listener) }()
	s.t.Cleanup(func() { server.Close() })
}

// put writes files into an image.
func put(files map[string]string) func(root string) error {
	return func(root string) error {
		for path, text := range files {
			at := filepath.Join(root, path)
			if err := os.MkdirAll(filepath.Dir(at), 0o755); err != nil {
				return err
			}
			if err := os.WriteFile(at, []byte(text), 0o600); err != nil {
				return err
			}
		}
		return nil
	}
}

// withPython is what cloud-init and Ansible need on a host.
var withPython = []string{"cloud-init", "python3-apt"}

// seed is what cloud-init finds on a machine that has its user data on a disk: a file of packaging/cloud-init
// with the texts replaced that it says to replace. The world gives hosts their network.
func seed(t *testing.T, file string, oldnew ...string) map[string]string {
	t.Helper()
	text, err := os.ReadFile("../packaging/cloud-init/" + file)
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i < len(oldnew); i += 2 {
		if !strings.Contains(string(text), oldnew[i]) {
			t.Fatalf("%s lacks %q", file, oldnew[i])
		}
	}
	const at = "var/lib/cloud/seed/nocloud/"
	return map[string]string{
		at + "user-data":                       strings.NewReplacer(oldnew...).Replace(string(text)),
		at + "meta-data":                       "instance-id: i-" + t.Name() + "\nlocal-hostname: web1\n",
		"etc/cloud/cloud.cfg.d/99-network.cfg": "network: {config: disabled}\n",
	}
}

// An image boots before the network and the control plane are there, is told by cloud-init to join, does so
// once they are there by its cloud's word, and does not join a second time.
func TestGoldenImageJoinsAtItsFirstBoot(t *testing.T) {
	s, c := fleet(t)
	_, err := s.Control.Exec(s.ctx, "systemctl", "stop", "curfew-controlplane.service")
	s.ok(err)
	_, err = s.Image(s.ctx, "web1", put(seed(t, "curfew.cfg",
		"server: curfew.example.org:7443", "server: "+stage.Server,
		"ca_pin: AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA",
		"ca_pin: "+s.Pin+"\n      name: web1\n      labels: {env: prod}",
	)), withPython...)
	s.ok(err)
	said := func(words ...string) func() (bool, string) {
		return func() (bool, string) {
			log, err := s.Hosts["web1"].Journal(s.ctx, "curfew-join.service")
			s.ok(err)
			for _, w := range words {
				if !strings.Contains(log, w) {
					return false, log
				}
			}
			return true, log
		}
	}
	s.within(time.Minute, "the image to wait for its cloud", said("not yet: asking the metadata service of aws"))
	// Debian's cloud-init also sets up what an image as small as this one does not have.
	if got := s.on("web1", `systemctl is-system-running --wait >/dev/null || true
systemctl list-units --plain --no-legend --failed | grep -v ^cloud-config.service || true
systemctl list-jobs --no-legend`); got != "" {
		t.Errorf("while it waits the host has failed units, or jobs: %s", got)
	}
	s.vouch(c)
	s.on("web1", route)
	s.within(2*time.Minute, "the image to wait for the control plane", said("not yet: enrolling with the control plane"))
	_, err = s.Control.Exec(s.ctx, "systemctl", "start", "curfew-controlplane.service")
	s.ok(err)
	s.within(2*time.Minute, "the image to join", said("joined acme as web1"))
	s.ok(s.Connected(s.ctx, "web1"))
	s.curfew(s.Admin, 0, []string{"hosts", "--json"}, "prod", cloudtest.Account, cloudtest.EC2Instance)
	s.curfew(s.Admin, 0, []string{"log"}, "aws instance "+cloudtest.EC2Instance+" of "+cloudtest.Account)
	s.within(time.Minute, "the joining to be over, and to have nothing to do again", func() (bool, string) {
		got := s.on("web1", `systemctl is-enabled curfew-agent.target || true
systemctl start curfew-join.service; systemctl is-failed curfew-join.service || true`)
		return got == "enabled\ninactive", got
	})
	// The disk is lost, the instance lives on: its word was good once.
	s.curfew(s.Admin, 0, []string{"admin", "host", "rm", "web1"})
	s.on("web1", `systemctl stop curfew-agent.target curfew-enforce curfew-link
rm -rf /var/lib/curfew/* /var/lib/curfew-link/*
systemctl start curfew-join.service`)
	s.within(time.Minute, "the instance to be refused", said("this instance has joined before", "curfew admin host add"))
	s.within(time.Minute, "the unit to give up", func() (bool, string) {
		got := s.on("web1", "systemctl is-failed curfew-join.service || true")
		return got == "failed", got
	})
}

// A machine becomes a host by Ansible, over ssh, and a second run changes nothing. Taken out of service, it
// joins anew by a credential of systemd's, and again at a boot, by what cloud-init leaves it.
func TestHostComesByAnsibleAndByCloudInit(t *testing.T) {
	built := packages(t)
	command(t.Context(), t, "e2e/deps.sh", "ansible-core", "ansible-lint")
	command(t.Context(), t, "ansible-lint", "--offline", "--strict", "--nocolor", "packaging/ansible")
	s := tell(t, stage.Options{Hosts: []string{}})
	debs := s.plainHost(filepath.Join(built, stage.Newer))
	play := s.ansible(s.Admin, debs)
	recap := regexp.MustCompile(`web1 +: ok=\d+ +changed=(\d+) +unreachable=0 +failed=0`)
	changes := func() string {
		r, err := s.Admin.Command(s.ctx, play...)
		s.ok(err)
		m := recap.FindStringSubmatch(r.Out)
		if r.Exit != 0 || m == nil {
			t.Fatalf("the play: %s", r)
		}
		return m[1]
	}
	if n := changes(); n == "0" {
		t.Error("the play that makes a host has nothing to do")
	}
	s.ok(s.Connected(s.ctx, "web1"))
	if status := s.on("web1", "curfew-agent status"); !regexp.MustCompile(`(?m)^mode +observe$`).MatchString(status) {
		t.Errorf("the host does not observe:\n%s", status)
	}
	if n := changes(); n != "0" {
		t.Errorf("a second run changes %s things", n)
	}

	for _, file := range []string{"curfew.cfg", "curfew-token.cfg"} {
		text, err := os.ReadFile("../packaging/cloud-init/" + file)
		s.ok(err)
		s.ok(s.Hosts["web1"].Write("/root/"+file, text, 0o600))
		s.on("web1", "cloud-init schema --config-file /root/"+file)
	}

	// By a token that stays root's, and that systemd hands to the unit.
	token := s.leaves(rejoining(t))
	s.on("web1", `mkdir /etc/systemd/system/curfew-join.service.d
printf '[Service]\nLoadCredential=join.token:/root/join.token\n' >/etc/systemd/system/curfew-join.service.d/token.conf
printf 'server: `+stage.Server+`\ntoken_file: credential:join.token\n' >/etc/curfew/join.yaml
(umask 077; echo '`+token+`' >/root/join.token)
systemctl daemon-reload
systemctl start curfew-join.service`)
	s.ok(s.Connected(s.ctx, "web1"))

	token = s.leaves(rejoining(t))
	s.on("web1", "rm -r /etc/systemd/system/curfew-join.service.d /etc/curfew/join.yaml /root/join.token")
	for path, text := range seed(t, "curfew-token.cfg",
		"server: curfew.example.org:7443", "server: "+stage.Server, "cft1.SECRET.PIN", token,
	) {
		s.ok(s.Hosts["web1"].Write("/"+path, []byte(text), 0o600))
	}
	s.ok(s.Hosts["web1"].Reboot(s.ctx))
	s.ok(s.Connected(s.ctx, "web1"))
	s.within(time.Minute, "the spent token to be gone", func() (bool, string) {
		got := s.on("web1", "ls /etc/curfew")
		return strings.Contains(got, "join.yaml") && !strings.Contains(got, "join.token"), got
	})
	if log, err := s.Hosts["web1"].Journal(s.ctx, "curfew-join.service"); err != nil || !strings.Contains(log, "joined acme as web1") {
		t.Errorf("the unit says %v\n%s", err, log)
	}
}

// leaves takes web1 out of service, makes it ready to join anew and returns a token for that.
func (s *story) leaves(script string) (token string) {
	s.t.Helper()
	s.curfew(s.Admin, 0, []string{"admin", "host", "rm", "web1"})
	s.on("web1", script)
	said := s.curfew(s.Admin, 0, []string{"admin", "host", "add", "web1", "--json"}).Out
	found := regexp.MustCompile(`"token": *"([^"]+)"`).FindStringSubmatch(said)
	if found == nil {
		s.t.Fatalf("no token in %s", said)
	}
	return found[1]
}

// plainHost adds web1, which has the agent's packages out of a folder lying about, and returns where, in the order in which
// they go in. Dana has had a way to root there all along.
func (s *story) plainHost(packages string) (debs []string) {
	s.t.Helper()
	h, err := s.AddHost(s.ctx, world.HostOptions{Name: "web1", With: withPython, Install: func(root string) error {
		for _, name := range []string{"libnss-curfew", "libpam-curfew", "curfew-agent"} {
			found, err := filepath.Glob(filepath.Join(packages, name+"_*.deb"))
			if err != nil || len(found) != 1 {
				return fmt.Errorf("packages %s: %q, %w", name, found, err)
			}
			text, err := os.ReadFile(found[0])
			to := "/var/tmp/" + filepath.Base(found[0])
			if err = errors.Join(err, os.WriteFile(filepath.Join(root, to), text, 0o644)); err != nil {
				return err
			}
			debs = append(debs, to)
		}
		return nil
	}})
	s.ok(err)
	s.Hosts["web1"] = h
	s.ok(s.People(s.ctx, h))
	s.ok(s.Admin.LetIn(s.ctx, h, "rescue"))
	s.on("web1", "echo 'rescue ALL=(ALL) NOPASSWD: ALL' >/etc/sudoers.d/rescue; chmod 440 /etc/sudoers.d/rescue")
	return debs
}

// ansible brings packaging/ansible to somebody's laptop and returns the command that plays it.
func (s *story) ansible(who *stage.Person, debs []string) []string {
	s.t.Helper()
	const from = "../packaging/ansible"
	s.ok(filepath.WalkDir(from, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		name, err := filepath.Rel(from, path)
		return errors.Join(err, who.Put(filepath.Join("ansible", name), path))
	}))
	s.ok(who.Write("hosts", []byte("[curfew_hosts]\nweb1 ansible_user=rescue\n"), 0o600))
	vars, err := json.Marshal(map[string]any{"curfew_agent_server": stage.Server, "curfew_agent_packages": debs})
	s.ok(err)
	return []string{
		"env", "ANSIBLE_PIPELINING=1", "ansible-playbook", "-i", "hosts", "-e", string(vars), "ansible/site.yml",
	}
}

// rejoining is what the handbook says to type on a host before it joins anew.
func rejoining(t *testing.T) string {
	t.Helper()
	page, err := os.ReadFile("../docs/operate/fleet.md")
	if err != nil {
		t.Fatal(err)
	}
	_, script, _ := strings.Cut(string(page), "To join the machine anew")
	_, script, _ = strings.Cut(script, "```sh\n")
	script, _, ok := strings.Cut(script, "```")
	if !ok {
		t.Fatal("docs/operate/fleet.md does not say how to join a machine anew")
	}
	return script
}

// command runs at the top of the source tree.
func command(ctx context.Context, t *testing.T, argv ...string) {
	t.Helper()
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	cmd.Dir = ".."
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%s: %v\n%s", strings.Join(argv, " "), err, out)
	}
}
