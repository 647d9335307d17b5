package world

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"sync"
	"time"
)

// Options of a new world. The zero value is fine.
type Options struct {
	// Name helps to recognise the world in process listings; it need not be unique.
	Name string
	// Out hears what takes long, such as building a root file system. Nil is silence.
	Out io.Writer
	// Dir becomes the state folder: removed on Close, and to be absent or empty before. It must lie
	// on a file system that overlayfs accepts as upper layer, and not below /run. The default is a
	// folder of its own in CacheDir.
	Dir string
}

// A World is a network with the hosts and laptops on it. Its methods may be called concurrently.
type World struct {
	prefix string // unique on this machine; names the cgroup and the entry in the register
	dir    string // state folder, mounted on /run/world inside the stage
	out    io.Writer
	lock   *os.File // held as long as this process lives: how others know that the world is in use
	cgroup cgroup   // everything of this world runs below
	stage  *anchor

	booting sync.WaitGroup // one count for each running host

	mu      sync.Mutex // guards what follows
	plugs   int        // how many are plugged into the switch, ever
	names   map[string]netip.Addr
	hosts   []*Host
	laptops []*Laptop
	groups  []*os.File // cgroups of hosts and laptops; open till the end, since Cmds refer to them
	closed  bool
}

// subnet is the same in all worlds: no two of them can see each other. The switch is its first
// address.
var subnet = netip.MustParsePrefix("10.99.0.0/24")

// stageScript hides the machine's /run and /tmp, so that nothing which nspawn leaves there outlives
// the world, brings the world's folder and the roots to fixed short paths, shows cgroup2 where
// systemd wants it, and sets up the switch.
const stageScript = `
mount -t tmpfs -o mode=755 tmpfs /run
mkdir /run/world /run/roots
mount --bind "$1" /run/world
mount --bind "$2" /run/roots
mount -t tmpfs -o mode=1777 tmpfs /tmp
umount -R /sys/fs/cgroup || true
mount -t cgroup2 cgroup2 /sys/fs/cgroup
ip link set lo up
ip link add switch type bridge
ip link set switch up
ip addr add "$3" dev switch
`

// New makes an empty world. It first sweeps up what killed processes left behind.
func New(ctx context.Context, o Options) (_ *World, err error) {
	if err := requirements(); err != nil {
		return nil, err
	}
	if o.Out == nil {
		o.Out = io.Discard
	}
	if err := CleanStale(ctx); err != nil {
		fmt.Fprintf(o.Out, "world: sweeping up: %v\n", err)
	}
	mount, err := cgroupMount()
	if err != nil {
		return nil, err
	}
	w := &World{out: o.Out, dir: o.Dir, names: make(map[string]netip.Addr)}
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("making a world: %w", err), w.Close())
		}
	}()
	w.prefix = "curfew-" + slug(o.Name) + "-" + randomHex(4)
	if w.dir == "" {
		w.dir = filepath.Join(CacheDir(), "worlds", w.prefix)
	}
	if in, _ := os.ReadDir(w.dir); len(in) > 0 {
		return nil, fmt.Errorf("%s is not empty, and Close would remove it", w.dir)
	}
	if w.lock, err = register(ctx, w.prefix, w.dir); err != nil {
		return nil, err
	}
	for _, sub := range []string{"hosts", "laptops", "net"} {
		if err := os.MkdirAll(filepath.Join(w.dir, sub), 0o755); err != nil {
			return nil, err
		}
	}
	hosts := []byte("127.0.0.1 localhost\n::1 localhost ip6-localhost\n")
	if err := os.WriteFile(filepath.Join(w.dir, "hosts.txt"), hosts, 0o644); err != nil {
		return nil, err
	}
	if w.cgroup, err = mount.child(w.prefix); err != nil {
		return nil, err
	}
	group, err := w.cgroup.child("stage")
	if err != nil {
		return nil, err
	}
	gateway := netip.PrefixFrom(subnet.Addr().Next(), subnet.Bits())
	w.stage, err = drop(ctx, group, []string{"unshare", "-m", "-n"}, stageScript,
		w.dir, CacheDir(), gateway.String())
	return w, err
}

// Dir is the world's state folder.
func (w *World) Dir() string { return w.dir }

// Close ends all processes of the world at once, without shutting hosts down, and removes every
// trace of it. It may be called twice, and on a world that New could not finish.
func (w *World) Close() error {
	w.mu.Lock()
	if w.closed {
		w.mu.Unlock()
		return nil
	}
	w.closed = true
	laptops := w.laptops
	w.mu.Unlock()
	if w.lock == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	err := sweep(ctx, w.prefix, w.dir)
	w.booting.Wait()
	if w.stage != nil {
		w.stage.cmd.Wait()
	}
	for _, l := range laptops {
		l.anchor.cmd.Wait()
	}
	w.mu.Lock()
	for _, g := range w.groups {
		g.Close()
	}
	w.mu.Unlock()
	if err == nil {
		err = forget(w.prefix)
	}
	return errors.Join(err, w.lock.Close())
}

// openGroup opens a cgroup's folder, for starting commands in it, until the world's end.
func (w *World) openGroup(path string) (fd int, err error) {
	f, err := os.Open(path)
	if err != nil {
		return 0, err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.groups = append(w.groups, f)
	return int(f.Fd()), nil
}

// plug is one end of a cable: an address on the world's network and the switch's port for it.
type plug struct {
	w    *World
	name string
	addr netip.Addr
	port string // interface in the stage's network namespace
}

// IP is the address on the world's network. It stays for the life of the world.
func (p *plug) IP() netip.Addr { return p.addr }

// Disconnect takes the cable out: packets are lost both ways, connections do not notice.
func (p *plug) Disconnect(ctx context.Context) error {
	if err := p.w.stage.sh(ctx, `ip link set "$1" down`, p.port); err != nil {
		return fmt.Errorf("disconnecting %s: %w", p.name, err)
	}
	return nil
}

// Reconnect puts the cable back.
func (p *plug) Reconnect(ctx context.Context) error {
	if err := p.w.stage.sh(ctx, `ip link set "$1" up`, p.port); err != nil {
		return fmt.Errorf("reconnecting %s: %w", p.name, err)
	}
	return nil
}

var validName = regexp.MustCompile(`^[a-z][a-z0-9-]{0,30}$`)

// reserve gives a name its address and its port.
func (w *World) reserve(name string) (plug, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.closed {
		return plug{}, errors.New("the world is closed")
	}
	if !validName.MatchString(name) || name == "localhost" {
		return plug{}, fmt.Errorf("%q cannot be a name here: want %s", name, validName)
	}
	if _, taken := w.names[name]; taken {
		return plug{}, fmt.Errorf("the name %s is taken in this world", name)
	}
	if w.plugs == 200 {
		return plug{}, errors.New("the switch has no port left")
	}
	w.plugs++
	ip := subnet.Addr().As4()
	ip[3] = byte(9 + w.plugs)
	w.names[name] = netip.AddrFrom4(ip)
	return plug{w: w, name: name, addr: w.names[name], port: "port" + strconv.Itoa(w.plugs)}, nil
}

// connect makes the cable between the switch and the network namespace at path (as the stage sees
// it), whose end is called eth0 there.
func (p *plug) connect(ctx context.Context, path string) error {
	const script = `
ip link add "$1" type veth peer name eth0 netns "$2"
ip link set "$1" master switch up
nsenter --net="$2" ip -batch - <<END
link set lo up
link set eth0 up
addr add $3 dev eth0
END`
	address := netip.PrefixFrom(p.addr, subnet.Bits())
	return p.w.stage.sh(ctx, script, p.port, path, address.String())
}

// announce makes a name known to everyone in the world: laptops share one file, hosts have a copy
// each, since it is theirs to change.
func (w *World) announce(p plug) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	line := []byte(p.addr.String() + " " + p.name + "\n")
	shared, err := os.OpenFile(filepath.Join(w.dir, "hosts.txt"), os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		return err
	}
	defer shared.Close()
	if _, err := shared.Write(line); err != nil {
		return err
	}
	for _, h := range w.hosts {
		if err := h.learn(line); err != nil {
			return fmt.Errorf("telling %s of %s: %w", h.name, p.name, err)
		}
	}
	return nil
}

var notSlug = regexp.MustCompile(`[^a-z0-9]+`)

// slug reduces a test's name to what may stand in a file name.
func slug(name string) string {
	name = notSlug.ReplaceAllString(name, "")
	return name[:min(len(name), 20)]
}

func randomHex(bytes int) string {
	b := make([]byte, bytes)
	rand.Read(b)
	return hex.EncodeToString(b)
}

func (w *World) isClosed() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.closed
}
