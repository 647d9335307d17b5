package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"sync"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/curfew-access/curfew/agent/store"
	"github.com/curfew-access/curfew/internal/frame"
	"github.com/curfew-access/curfew/internal/grant"
	"github.com/curfew-access/curfew/internal/grant/granttest"
	curfewv1 "github.com/curfew-access/curfew/proto/curfew/v1"
)

// The desk stands in for the link half and the control plane on a host whose root half trusts its
// keys. So a thousand people need no thousand laptops; everything from the link socket on is the
// product's own.
type desk struct {
	*granttest.World
	conn  *net.UnixConn
	nonce []byte
	live  []grant.ID
	named int // requests so far

	mu   sync.Mutex
	acks chan *curfewv1.Ack
	err  error
}

// applyLimit bounds the way in of a thousand grants.
const applyLimit = 5 * time.Minute

const stateDir = "/var/lib/curfew"

// prepare makes the host one that has joined the desk's organisation. It runs before the root half.
func prepare() error {
	w := granttest.NewWorld()
	if err := os.MkdirAll(stateDir, 0o700); err != nil {
		return err
	}
	s, err := store.Open(store.Config{Directory: stateDir})
	if err != nil {
		return err
	}
	defer s.Close()
	if _, err := s.NewKey(bytes.NewReader(w.HostKey.Seed())); err != nil {
		return err
	}
	if err := s.SaveHost(store.Host{Name: "desk", Organisation: granttest.Organisation}); err != nil {
		return err
	}
	return s.SaveLedger(w.Ledger())
}

// sit connects to the root half. sequence is where the states of an earlier desk ended.
func sit() (*desk, error) {
	conn, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: "/run/curfew/link.sock", Net: "unix"})
	if err != nil {
		return nil, err
	}
	d := &desk{World: granttest.NewWorld(), conn: conn, acks: make(chan *curfewv1.Ack, 64)}
	hello, err := d.receive()
	if err != nil {
		return nil, err
	}
	d.nonce, d.Sequence = hello.GetHello().GetNonce(), hello.GetHello().GetSequence()
	count := hello.GetHello().GetEventCount()
	d.named = int(d.Sequence) * 10000
	go d.listen()
	return d, d.send(&curfewv1.ControlMessage{Body: &curfewv1.ControlMessage_Welcome{
		Welcome: &curfewv1.Welcome{HostName: "desk", EventCount: count},
	}})
}

func (d *desk) receive() (*curfewv1.HostMessage, error) {
	raw, err := frame.Read(d.conn, frame.Max)
	if err != nil {
		return nil, err
	}
	signed, m := new(curfewv1.SignedHostMessage), new(curfewv1.HostMessage)
	return m, errors.Join(proto.Unmarshal(raw, signed), proto.Unmarshal(signed.GetBody(), m))
}

// listen takes what the host says: acks are passed on, events are acknowledged.
func (d *desk) listen() {
	defer close(d.acks)
	for {
		m, err := d.receive()
		if err != nil {
			d.mu.Lock()
			d.err = err
			d.mu.Unlock()
			return
		}
		switch body := m.GetBody().(type) {
		case *curfewv1.HostMessage_Ack:
			d.acks <- body.Ack
		case *curfewv1.HostMessage_Event:
			if n := body.Event.GetNumber(); n%16 == 0 {
				_ = d.send(&curfewv1.ControlMessage{Body: &curfewv1.ControlMessage_EventAck{
					EventAck: &curfewv1.EventAck{Count: n},
				}}) // the next one repeats it
			}
		}
	}
}

func (d *desk) send(m *curfewv1.ControlMessage) error {
	raw, err := proto.Marshal(m)
	if err != nil {
		return err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	return frame.Write(d.conn, raw)
}

// a subject is one person with one grant.
type subject struct {
	login string
	uid   uint32
	id    grant.ID
	end   time.Time
}

// issue seals a grant with one sudo rule for each subject, approved as the trust file wants, and
// fills in its id. Whatever its start, it ends at the subject's end.
func (d *desk) issue(people []*subject) error {
	now := time.Now()
	for _, p := range people {
		d.named++
		terms := d.Terms(now, func(t *curfewv1.Terms) {
			t.RequestId = fmt.Sprintf("%012x", d.named)
			t.Login, t.Uid, t.Requester = p.login, p.uid, p.login
			t.HardEndMs = p.end.UnixMilli()
			t.StartLatestMs, t.DurationMs = t.HardEndMs-1, (8 * time.Hour).Milliseconds()
		})
		id, envelope := d.Grant(terms, d.Bob)
		p.id = id
		d.live = append(d.live, id)
		err := d.send(&curfewv1.ControlMessage{Body: &curfewv1.ControlMessage_Grant{
			Grant: &curfewv1.GrantEnvelope{Envelope: envelope},
		}})
		if err != nil {
			return err
		}
	}
	return nil
}

// state sends the list of what lives and waits until the host has made itself equal to it.
func (d *desk) state() error {
	s := d.HostState(time.Now(), d.nonce, d.live...)
	err := d.send(&curfewv1.ControlMessage{Body: &curfewv1.ControlMessage_State{
		State: &curfewv1.State{Envelope: granttest.SealState(s, d.Issuer)},
	}})
	if err != nil {
		return err
	}
	timeout := time.After(applyLimit)
	for {
		select {
		case a, ok := <-d.acks:
			if !ok {
				return fmt.Errorf("the root half hung up: %w", d.err)
			}
			if a.GetSequence() < s.Sequence {
				continue
			}
			if !a.GetAccepted() {
				return errors.New(a.GetDetail())
			}
			for _, g := range a.GetGrants() {
				if g.GetStatus() != curfewv1.GrantStatus_GRANT_STATUS_APPLIED {
					return fmt.Errorf("a grant is %v: %s", g.GetStatus(), g.GetDetail())
				}
			}
			return nil
		case <-timeout:
			return fmt.Errorf("no ack within %s", applyLimit)
		}
	}
}

// people makes n subjects with logins that begin alike.
func people(prefix string, from uint32, n int, end func(int) time.Time) []*subject {
	list := make([]*subject, n)
	for i := range list {
		list[i] = &subject{
			login: fmt.Sprintf("%s%04d", prefix, i), uid: 1900010000 + from + uint32(i), end: end(i),
		}
	}
	return list
}

// atDesk runs one of the desk's parts and prints what it measured, a line of JSON for each line that
// it reads.
func atDesk(args []string) error {
	parts := map[string]func() (any, error){
		"prepare": func() (any, error) { return nil, prepare() },
		"lag":     lagOfMany,
		"crowd":   func() (any, error) { return expireCrowd(args[1]) },
	}
	if args[0] == "hold" {
		return hold()
	}
	part := parts[args[0]]
	if part == nil {
		return fmt.Errorf("no such part: %s", args[0])
	}
	result, err := part()
	if err != nil {
		return err
	}
	return json.NewEncoder(os.Stdout).Encode(result)
}

// hold keeps a thousand grants live until its input ends, then takes them back at once.
func hold() error {
	d, err := sit()
	if err != nil {
		return err
	}
	began := time.Now()
	crowd := people("held", 0, crowdSize, func(int) time.Time { return time.Now().Add(time.Hour) })
	if err := errors.Join(d.issue(crowd), d.state()); err != nil {
		return err
	}
	fmt.Println(time.Since(began).Nanoseconds())
	if err := laps(func() (time.Duration, error) { return 0, nil }); err != nil {
		return err
	}
	d.live = nil
	return d.state()
}

// gone waits until a path is no more and says when that was seen.
func gone(ctx context.Context, path string) (time.Time, error) {
	for {
		if _, err := os.Lstat(path); os.IsNotExist(err) {
			return time.Now(), nil
		}
		if ctx.Err() != nil {
			return time.Time{}, fmt.Errorf("%s is still there", path)
		}
		time.Sleep(2 * time.Millisecond)
	}
}

func files(p *subject) []string {
	return []string{"/run/curfew/sudoers.d/" + p.id.String(), "/run/curfew/keys/" + p.login}
}

func latest(times ...time.Time) time.Time {
	return slices.MaxFunc(times, func(a, b time.Time) int { return a.Compare(b) })
}
