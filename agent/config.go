package agent

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"path"
	"slices"
	"strconv"
	"strings"
	"time"

	"go.yaml.in/yaml/v4"

	"github.com/curfew-access/curfew/agent/enforce/account"
	"github.com/curfew-access/curfew/internal/grant"
)

// ConfigPath is where a host's admin writes what Curfew may do there.
const ConfigPath = "/etc/curfew/agent.yaml"

const maxConfig = 1 << 20

// Settings is /etc/curfew/agent.yaml: what this host permits, whatever the control plane signs. A
// field that is left out keeps its default; an unknown one is refused.
type Settings struct {
	// Mode is observe (nobody is denied, what would be denied is recorded) or enforce.
	Mode    string  `yaml:"mode"`
	Ceiling Ceiling `yaml:"ceiling"`
	// BreakGlassGroup is a local group whose members Curfew never stands in the way of.
	BreakGlassGroup string `yaml:"break_glass_group"`
	// BreakGlass is what one-use codes open while the control plane is away.
	BreakGlass BreakGlass `yaml:"break_glass"`
	// GatedUsers are local users who cannot log in without a grant.
	GatedUsers []string `yaml:"gated_users"`
	// ElevateUsers are local users who log in as ever and get only their sudo from grants.
	ElevateUsers []string `yaml:"elevate_users"`
	UIDRange     UIDRange `yaml:"uid_range"`
	HomeRoot     string   `yaml:"home_root"`
	Shell        string   `yaml:"shell"`
	// Skel is the folder that new homes are filled from; empty gives empty homes.
	Skel string `yaml:"skel"`
	// LeaseAction says what happens to running sessions when the control plane is silent for too
	// long: freeze keeps them, terminate ends them. Nothing new opens either way.
	LeaseAction string `yaml:"lease_action"`
	// FollowRollouts lets the control plane's staged rollouts switch a host that observes to enforcing, on
	// trial first, and back.
	FollowRollouts bool `yaml:"follow_rollouts"`
	// MetricsListen is where the link half serves metrics and health over HTTP, HOST:PORT; empty for
	// nowhere. It takes effect when the link half starts.
	MetricsListen string `yaml:"metrics_listen"`
}

// Ceiling is what no grant may exceed on this host.
type Ceiling struct {
	MaxDuration time.Duration `yaml:"max_duration"`
	// AllowedGroups are the local groups that grants may put Curfew accounts into.
	AllowedGroups []string `yaml:"allowed_groups"`
	// AllowRootEquivalent permits sudo rules that amount to all of root.
	AllowRootEquivalent bool `yaml:"allow_root_equivalent"`
	// Standing says what the trust file's standing rules may open here without approvals: none,
	// contained (the default: nothing that is root-equivalent), or any.
	Standing string `yaml:"standing"`
}

// standings are the values of Ceiling.Standing.
var standings = map[string]grant.StandingCeiling{
	"none": grant.StandingNone, "contained": grant.StandingContained, "any": grant.StandingAny,
}

// UIDRange bounds the uids of Curfew accounts, both ends included.
type UIDRange struct {
	Min uint32 `yaml:"min"`
	Max uint32 `yaml:"max"`
}

// Values of LeaseAction.
const (
	LeaseFreeze    = "freeze"
	LeaseTerminate = "terminate"
)

// DefaultSettings is what holds without a file: nobody is denied, and little may be granted.
//
// The uids clash with nothing else: adduser ends at 59999, subordinate ids at 600100000, systemd's
// containers at 1879048191; and they stay below 2^31, which some file systems and tools need.
func DefaultSettings() Settings {
	return Settings{
		Mode:            "observe",
		Ceiling:         Ceiling{MaxDuration: 24 * time.Hour, Standing: "contained"},
		BreakGlassGroup: "curfew-breakglass",
		BreakGlass:      BreakGlass{Codes: 8, MaxDuration: 30 * time.Minute},
		UIDRange:        UIDRange{Min: 1900000000, Max: 1999999999},
		HomeRoot:        "/home",
		Shell:           "/bin/bash",
		Skel:            "/etc/skel",
		LeaseAction:     LeaseFreeze,
	}
}

// LoadSettings reads the file at path; without one the defaults hold. An error names the line and
// the field.
func LoadSettings(name string) (Settings, error) {
	s, _, err := loadSettings(name)
	return s, err
}

// loadSettings also tells whether there was a file with anything in it.
func loadSettings(name string) (s Settings, said bool, err error) {
	info, err := os.Stat(name)
	if errors.Is(err, fs.ErrNotExist) {
		return DefaultSettings(), false, nil
	}
	if err == nil && (!info.Mode().IsRegular() || info.Size() > maxConfig) {
		err = fmt.Errorf("not a file of at most %d bytes", maxConfig)
	}
	var data []byte
	if err == nil {
		data, err = os.ReadFile(name)
	}
	if err != nil {
		return Settings{}, false, fmt.Errorf("reading %s: %w", name, err)
	}
	if s, err = ParseSettings(data); err != nil {
		return Settings{}, false, fmt.Errorf("%s: %w", name, err)
	}
	return s, len(data) > 0, nil
}

// ParseSettings reads the file's content over the defaults.
func ParseSettings(data []byte) (Settings, error) {
	s := DefaultSettings()
	doc, err := oneDocument(data)
	if err != nil || doc == nil {
		return s, err
	}
	options := []yaml.Option{yaml.WithUniqueKeys(), yaml.WithKnownFields()}
	if err := doc.Load(&s, options...); err != nil {
		return Settings{}, sayYAML(err, doc)
	}
	if field, err := s.check(); err != nil {
		return Settings{}, fmt.Errorf("line %d: %s: %w", lineOf(doc, field), field, err)
	}
	return s, nil
}

// oneDocument parses the file; nil means that there is nothing but comments in it.
func oneDocument(data []byte) (*yaml.Node, error) {
	loader, err := yaml.NewLoader(bytes.NewReader(data), yaml.WithUniqueKeys())
	if err != nil {
		return nil, err
	}
	doc, second := new(yaml.Node), new(yaml.Node)
	err = loader.Load(doc)
	if errors.Is(err, io.EOF) {
		return nil, nil
	}
	if err != nil {
		return nil, sayYAML(err, nil)
	}
	if err := loader.Load(second); !errors.Is(err, io.EOF) {
		return nil, fmt.Errorf("line %d: a second document begins; there is only one", second.Line)
	}
	if len(doc.Content) == 0 || doc.Content[0].Tag == "!!null" {
		return nil, nil
	}
	return doc, nil
}

// check returns the first field that cannot stand, and why.
func (s Settings) check() (field string, err error) {
	checks := []struct {
		field string
		err   error
	}{
		{"mode", oneOf(s.Mode, "observe", "enforce")},
		{"ceiling.max_duration", checkDuration(s.Ceiling.MaxDuration)},
		{"ceiling.allowed_groups", checkNames(s.Ceiling.AllowedGroups, checkGroup)},
		{"ceiling.standing", oneOf(s.Ceiling.Standing, "none", "contained", "any")},
		{"break_glass_group", grant.CheckUnixGroup(s.BreakGlassGroup)},
		{"break_glass.codes", s.BreakGlass.checkCodes()},
		{"break_glass.custodians", checkNames(s.BreakGlass.Custodians, grant.CheckGroupName)},
		{"break_glass.max_duration", s.BreakGlass.checkDuration()},
		{"break_glass.sudo", s.BreakGlass.checkSudo()},
		{"gated_users", checkNames(s.GatedUsers, checkLogin)},
		{"elevate_users", checkNames(s.ElevateUsers, checkLogin)},
		{"elevate_users", s.checkOnce()},
		{"uid_range", s.UIDRange.check()},
		{"home_root", checkPath(s.HomeRoot)},
		{"shell", checkPath(s.Shell)},
		{"lease_action", oneOf(s.LeaseAction, LeaseFreeze, LeaseTerminate)},
		{"metrics_listen", checkListen(s.MetricsListen)},
	}
	if s.Skel != "" {
		checks = append(checks, struct {
			field string
			err   error
		}{"skel", checkPath(s.Skel)})
	}
	for _, c := range checks {
		if c.err != nil {
			return c.field, c.err
		}
	}
	return "", nil
}

func oneOf(got string, want ...string) error {
	if slices.Contains(want, got) {
		return nil
	}
	return fmt.Errorf("%q is none of %s", got, strings.Join(want, ", "))
}

func checkListen(address string) error {
	if address == "" {
		return nil
	}
	_, port, err := net.SplitHostPort(address)
	if err == nil {
		_, err = strconv.ParseUint(port, 10, 16)
	}
	if err != nil {
		return fmt.Errorf("%q is not HOST:PORT, such as 127.0.0.1:9470", address)
	}
	return nil
}

func checkDuration(d time.Duration) error {
	if d < time.Second || d > 366*24*time.Hour {
		return fmt.Errorf("%v is out of range; 1s to 8784h", d)
	}
	return nil
}

func checkGroup(name string) error {
	if name == "root" || strings.HasPrefix(name, "curfew-") {
		return fmt.Errorf("the group %s is never given", name)
	}
	return grant.CheckUnixGroup(name)
}

func checkLogin(name string) error {
	if name == "root" {
		return errors.New("root is never managed")
	}
	return grant.CheckUserName(name)
}

func checkNames(names []string, check func(string) error) error {
	for i, name := range names {
		if err := check(name); err != nil {
			return err
		}
		if slices.Contains(names[:i], name) {
			return fmt.Errorf("%s stands twice", name)
		}
	}
	return nil
}

func (s Settings) checkOnce() error {
	for _, name := range s.ElevateUsers {
		if slices.Contains(s.GatedUsers, name) {
			return fmt.Errorf("%s stands in gated_users too", name)
		}
	}
	return nil
}

func (r UIDRange) check() error {
	if r.Min < 1000 || r.Max < r.Min || r.Max > 1<<31-1 {
		return fmt.Errorf("%d to %d: min is at least 1000, max at least min and below 2^31", r.Min, r.Max)
	}
	return nil
}

// checkPath refuses what a passwd entry or a walk from the root could not carry.
func checkPath(p string) error {
	if !path.IsAbs(p) || path.Clean(p) != p || strings.ContainsAny(p, ":\n\r\x00") || p == "/" {
		return fmt.Errorf("%q is not a clean absolute path", p)
	}
	return nil
}

func (s Settings) mode() account.Mode {
	if s.Mode == "enforce" {
		return account.ModeEnforce
	}
	return account.ModeObserve
}

func (s Settings) ceiling() grant.Ceiling {
	return grant.Ceiling{
		MaxDuration: s.Ceiling.MaxDuration, AllowedGroups: s.Ceiling.AllowedGroups,
		RootEquivalent: s.Ceiling.AllowRootEquivalent, Standing: standings[s.Ceiling.Standing],
		Local: s.BreakGlass.ceiling(),
	}
}

func (s Settings) rules() account.Rules {
	return account.Rules{
		Gated: s.GatedUsers, Elevate: s.ElevateUsers, BreakGlass: s.BreakGlassGroup,
		UIDMin: s.UIDRange.Min, UIDMax: s.UIDRange.Max, HomeRoot: s.HomeRoot, Shell: s.Shell,
	}
}

// lineOf finds the line of a dotted field, or of the nearest parent that is there.
func lineOf(doc *yaml.Node, field string) int {
	if doc == nil || len(doc.Content) == 0 {
		return 1
	}
	node, line := doc.Content[0], doc.Content[0].Line
	for part := range strings.SplitSeq(field, ".") {
		for i := 0; i+1 < len(node.Content); i += 2 {
			if node.Content[i].Value == part {
				line, node = node.Content[i].Line, node.Content[i+1]
				break
			}
		}
	}
	return line
}

// fieldAt names the key on or above a line, for errors that only know the line.
func fieldAt(doc *yaml.Node, line int) string {
	if doc == nil || len(doc.Content) == 0 {
		return ""
	}
	var found string
	var walk func(n *yaml.Node, prefix string)
	walk = func(n *yaml.Node, prefix string) {
		if n.Kind != yaml.MappingNode {
			return
		}
		for i := 0; i+1 < len(n.Content); i += 2 {
			if n.Content[i].Line <= line {
				found = prefix + n.Content[i].Value
				walk(n.Content[i+1], found+".")
			}
		}
	}
	walk(doc.Content[0], "")
	return found
}

// sayYAML turns the parser's errors into "line N: field: what".
func sayYAML(err error, doc *yaml.Node) error {
	var many *yaml.LoadErrors
	var one *yaml.LoadError
	switch {
	case errors.As(err, &many) && len(many.Errors) > 0:
		one = many.Errors[0]
	case !errors.As(err, &one):
		return err
	}
	if field := fieldAt(doc, one.Mark.Line); field != "" {
		return fmt.Errorf("line %d: %s: %s", one.Mark.Line, field, one.Message)
	}
	return fmt.Errorf("line %d: %s", one.Mark.Line, one.Message)
}
