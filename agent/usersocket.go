package agent

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/curfew-access/curfew/internal/grant"
)

const (
	// UserSocket is where people on the host speak to the root half, below its run folder.
	UserSocket      = "user.sock"
	maxUserRequest  = 4 << 10
	maxUsersAtATime = 64
	maxPerUser      = 2
	userTimeout     = 10 * time.Second
	// standsWithin is how long a grant that a code opened is waited for, and looked at how often.
	standsWithin = 7 * time.Second
	standsPoll   = 25 * time.Millisecond
)

type userRequest struct {
	Verb  string   `json:"verb"`
	Use   *CodeUse `json:"use,omitempty"`
	Login string   `json:"login,omitempty"`
}

type userAnswer struct {
	Error  string      `json:"error,omitempty"`
	Opened *CodeOpened `json:"opened,omitempty"`
	Ended  []string    `json:"ended,omitempty"`
}

// userDesk answers people on the host. Who they are is the kernel's word alone; a few of their
// connections are served at once, and of one person two, so that nobody keeps the others out.
type userDesk struct {
	owner *owner
	mu    sync.Mutex
	open  map[uint32]int
	all   int
}

func (d *userDesk) enter(uid uint32) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.open[uid] >= maxPerUser || d.all >= maxUsersAtATime && uid != 0 {
		return false
	}
	d.open[uid]++
	d.all++
	return true
}

func (d *userDesk) leave(uid uint32) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.all--
	if d.open[uid]--; d.open[uid] == 0 {
		delete(d.open, uid)
	}
}

// serve answers until ctx ends. It closes the listener.
func (d *userDesk) serve(ctx context.Context, l *net.UnixListener) error {
	stop := context.AfterFunc(ctx, func() { _ = l.Close() }) // wakes Accept
	defer stop()
	group, groupCtx := errgroup.WithContext(ctx)
	for {
		conn, err := l.AcceptUnix()
		if err != nil {
			if ctx.Err() != nil {
				return group.Wait()
			}
			return errors.Join(fmt.Errorf("accepting on the user socket: %w", err), group.Wait())
		}
		uid, err := peerUID(conn)
		if err != nil || !d.enter(uid) {
			_ = conn.Close() // refused
			continue
		}
		group.Go(func() error {
			defer d.leave(uid)
			defer func() { _ = conn.Close() }() // the answer was written or not
			if err := d.answer(groupCtx, conn, uid); err != nil {
				d.owner.log.Debug("a question on the user socket was not answered", "uid", uid, "error", err)
			}
			return nil
		})
	}
}

func (d *userDesk) answer(ctx context.Context, conn *net.UnixConn, uid uint32) error {
	if err := conn.SetDeadline(time.Now().Add(userTimeout)); err != nil {
		return err
	}
	line, err := bufio.NewReader(io.LimitReader(conn, maxUserRequest)).ReadBytes('\n')
	if err != nil {
		return fmt.Errorf("reading the question: %w", err)
	}
	ctx, cancel := context.WithTimeout(ctx, userTimeout)
	defer cancel()
	var q userRequest
	var a userAnswer
	switch err := json.Unmarshal(line, &q); {
	case err != nil:
		a.Error = "not a line of JSON"
	case q.Verb == "break-glass" && q.Use != nil:
		a.Opened, err = d.use(ctx, uid, *q.Use)
		a.Error = textOf(err)
	case q.Verb == "break-glass-end":
		errDo := d.owner.do(ctx, func(ctx context.Context) { a.Ended, err = d.owner.endLocal(ctx, uid, q.Login) })
		a.Error = textOf(errors.Join(errDo, err))
	default:
		a.Error = "unknown verb"
	}
	return json.NewEncoder(conn).Encode(a)
}

func textOf(err error) string {
	if err == nil {
		return ""
	}
	return grant.VisibleText(err.Error())
}

// use has a code used, and waits until what it opened stands.
func (d *userDesk) use(ctx context.Context, uid uint32, use CodeUse) (*CodeOpened, error) {
	var opened *CodeOpened
	var err error
	errDo := d.owner.do(ctx, func(ctx context.Context) { opened, err = d.owner.useCode(ctx, uid, use) })
	if err := errors.Join(errDo, err); err != nil {
		return nil, err
	}
	deadline := time.Now().Add(standsWithin)
	for {
		stands := false
		err := d.owner.do(ctx, func(context.Context) {
			if r := d.owner.standing(opened.id); r != nil {
				stands = true
				opened.Class = r.Subject.Class.String()
				if !r.Applied() {
					opened.Failed = r.Detail
				}
			}
		})
		if err != nil || stands {
			return opened, nil //nolint:nilerr // the code is spent; that is said
		}
		if time.Now().After(deadline) {
			opened.Failed = "the host's checks are not through yet; see curfew-agent status"
			return opened, nil
		}
		pause(ctx, standsPoll)
	}
}

// UseCode has the root half that serves the user socket at path use a break-glass code.
func UseCode(ctx context.Context, path string, use CodeUse) (*CodeOpened, error) {
	a, err := askUser(ctx, path, userRequest{Verb: "break-glass", Use: &use})
	if err == nil && a.Opened == nil {
		err = errors.New("the root half answers nothing")
	}
	if err != nil {
		return nil, err
	}
	return a.Opened, nil
}

// EndLocal ends what break-glass codes opened for a login; for root, without one, all of it.
func EndLocal(ctx context.Context, path, login string) ([]string, error) {
	a, err := askUser(ctx, path, userRequest{Verb: "break-glass-end", Login: login})
	if err != nil {
		return nil, err
	}
	return a.Ended, nil
}

func askUser(ctx context.Context, path string, q userRequest) (*userAnswer, error) {
	a := new(userAnswer)
	if err := ask(ctx, path, userTimeout, q, a); err != nil {
		return nil, err
	}
	if a.Error != "" {
		return nil, errors.New(a.Error)
	}
	return a, nil
}
