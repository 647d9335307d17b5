package agentcli

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"time"

	"go.yaml.in/yaml/v4"

	"github.com/curfew-access/curfew/agent/link"
	"github.com/curfew-access/curfew/internal/grant"
)

// joinFile is /etc/curfew/join.yaml: what an image, cloud-init or Ansible leaves for
// curfew-join.service to join with. An unknown field is refused.
type joinFile struct {
	Server string `yaml:"server"`
	// TokenFile holds the one-time token, and is removed when the host has joined; or it names one that systemd
	// hands over: "credential:NAME".
	TokenFile string            `yaml:"token_file"`
	Cloud     string            `yaml:"cloud"`
	CAPin     string            `yaml:"ca_pin"`
	Name      string            `yaml:"name"`
	Address   string            `yaml:"address"`
	Labels    map[string]string `yaml:"labels"`
}

const maxJoinFile = 64 << 10

// readFrom takes what the file says where no flag did.
func (f *joinFlags) readFrom(path string) error {
	data, err := readSmall(path)
	if err != nil {
		return err
	}
	var j joinFile
	loader, err := yaml.NewLoader(bytes.NewReader(data), yaml.WithKnownFields(), yaml.WithUniqueKeys())
	if err != nil {
		return err
	}
	if err := loader.Load(&j); err != nil && !errors.Is(err, io.EOF) {
		return fmt.Errorf("%s: %w", path, err)
	}
	for _, v := range []struct {
		flag *string
		text string
	}{
		{&f.server, j.Server},
		{&f.cloud, j.Cloud},
		{&f.pin, j.CAPin},
		{&f.name, j.Name},
		{&f.address, j.Address},
	} {
		if *v.flag == "" {
			*v.flag = v.text
		}
	}
	if f.labels == nil {
		f.labels = j.Labels
	}
	if j.TokenFile == "" || f.token != "" {
		return nil
	}
	if name, ok := strings.CutPrefix(j.TokenFile, "credential:"); ok {
		return f.readCredential(name)
	}
	f.tokenFile = j.TokenFile
	return f.readToken()
}

// readCredential reads a token that systemd hands to curfew-join.service (LoadCredential=, systemd.exec(5)), for
// as long as that runs: it is nobody's to remove.
func (f *joinFlags) readCredential(name string) error {
	dir := os.Getenv("CREDENTIALS_DIRECTORY")
	if dir == "" {
		return fmt.Errorf("token_file credential:%s: systemd handed over no credentials; curfew-join.service needs "+
			"LoadCredential=%s:/PATH (systemctl edit curfew-join)", name, name)
	}
	if name == "" || name != filepath.Base(name) {
		return fmt.Errorf("token_file credential:%s: that is no name of a credential", name)
	}
	data, err := readSmall(filepath.Join(dir, name))
	if err != nil {
		return fmt.Errorf("reading the join token: %w", err)
	}
	f.token = strings.TrimSpace(string(data))
	return nil
}

// readToken reads the token that others must not be able to read.
func (f *joinFlags) readToken() error {
	info, err := os.Stat(f.tokenFile)
	if err != nil {
		return fmt.Errorf("reading the join token: %w", err)
	}
	if info.Mode().Perm()&0o077 != 0 {
		return fmt.Errorf("join token %s has mode %04o: others can read it; chmod 0600 it", f.tokenFile,
			info.Mode().Perm())
	}
	data, err := readSmall(f.tokenFile)
	if err != nil {
		return err
	}
	f.token = strings.TrimSpace(string(data))
	return nil
}

func readSmall(path string) ([]byte, error) {
	file, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	data, err := io.ReadAll(io.LimitReader(file, maxJoinFile+1))
	if err == nil && len(data) > maxJoinFile {
		err = fmt.Errorf("%s is longer than %d bytes", path, maxJoinFile)
	}
	return data, err
}

// forgetToken removes what is worth nothing any more.
func (f *joinFlags) forgetToken() error {
	if f.tokenFile == "" {
		return nil
	}
	if err := os.Remove(f.tokenFile); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("removing the spent token: %w", err)
	}
	return nil
}

// Pauses between tries to join while nobody answers, before jitter.
const (
	firstPause = time.Second
	maxPause   = 30 * time.Second
)

// persist tries to join, and with --wait again for as long as time alone may help.
func (f *joinFlags) persist(
	ctx context.Context, stderr io.Writer, try func() (*link.Joined, error),
) (*link.Joined, error) {
	for pause := firstPause; ; pause = min(2*pause, maxPause) {
		joined, err := try()
		if err == nil || !f.wait || !link.TryLater(err) {
			return joined, err
		}
		wait := pause/2 + rand.N(pause/2)
		fmt.Fprintf(stderr, "not yet: %s; trying again in %s\n", grant.VisibleText(err.Error()),
			wait.Round(time.Second/10))
		select {
		case <-ctx.Done():
			return nil, err
		case <-time.After(wait):
		}
	}
}
