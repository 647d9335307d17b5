package api

import (
	"context"
	"crypto/sha256"
	"errors"
	"slices"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"

	"github.com/curfew-access/curfew/controlplane/access"
	"github.com/curfew-access/curfew/controlplane/identity"
	"github.com/curfew-access/curfew/controlplane/reason"
	"github.com/curfew-access/curfew/controlplane/request"
	"github.com/curfew-access/curfew/controlplane/watch"
	apiv1 "github.com/curfew-access/curfew/proto/curfew/api/v1"
)

// Limits on long calls.
const (
	watchDepth   = 256 // changes that a slow watcher may lag behind
	maxWatched   = 5000
	recordsBatch = 200
	maxAnswer    = 1 << 20 // bytes of content in one answer, far below gRPC's 4 MiB
)

// watcher is one WatchRequests call.
type watcher struct {
	s      *Server
	stream grpc.ServerStreamingServer[apiv1.WatchRequestsResponse]
	query  access.Query
	only   string // a request id, or empty
	// sent is the digest of what was last sent of each request, so that nothing is sent twice and
	// what no longer matches is sent once more.
	sent map[string][sha256.Size]byte
	// granted are those whose sessions may change without a change in the store.
	granted map[string]*request.Request
}

// WatchRequests implements curfew.api.v1.Access.
func (s *Server) WatchRequests(
	req *apiv1.WatchRequestsRequest, stream grpc.ServerStreamingServer[apiv1.WatchRequestsResponse],
) error {
	ctx := stream.Context()
	w := &watcher{
		s: s, stream: stream, query: queryOf(req.GetFilter()), only: req.GetId(),
		sent:    make(map[string][sha256.Size]byte),
		granted: make(map[string]*request.Request),
	}
	// Listening begins before the first look, so that nothing falls between.
	sub := s.c.Bell.Subscribe(watchDepth)
	defer sub.Close()
	p, err := s.still(ctx) // anew: the session may have ended before anybody listened
	if err != nil {
		return err
	}
	if err := w.first(ctx, p); err != nil {
		return err
	}
	return s.follow(ctx, sub, func(p identity.Person, c watch.Change) error {
		return w.look(ctx, p, c)
	})
}

// follow calls do for every change, with the person as they are then, until the call, the session or
// the server ends.
func (s *Server) follow(
	ctx context.Context, sub *watch.Subscription, do func(identity.Person, watch.Change) error,
) error {
	recheck := time.NewTicker(recheckEvery)
	defer recheck.Stop()
	for {
		var change watch.Change
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-recheck.C:
		case c, ok := <-sub.C:
			if !ok {
				return reason.Limit("%v", sub.Err()).WithHint("run the command again")
			}
			change = c
		}
		p, err := s.still(ctx)
		if err != nil {
			return err
		}
		if err := do(p, change); err != nil {
			return err
		}
	}
}

func (w *watcher) first(ctx context.Context, p identity.Person) error {
	if w.only != "" {
		r, err := w.s.c.Access.Get(ctx, p, w.only)
		if err != nil {
			return err
		}
		return w.send(ctx, r)
	}
	found, err := w.s.c.Access.List(ctx, p, w.query)
	if err != nil {
		return err
	}
	slices.Reverse(found) // oldest first, as changes come
	for _, r := range found {
		if err := w.send(ctx, r); err != nil {
			return err
		}
	}
	return nil
}

// look sends what a change made of the requests that the watcher sees.
func (w *watcher) look(ctx context.Context, p identity.Person, c watch.Change) error {
	ids := slices.Clone(c.Requests)
	for _, host := range c.Heard {
		for id, r := range w.granted {
			on := slices.ContainsFunc(r.Hosts, func(h request.Host) bool { return h.ID == host })
			if on && !slices.Contains(ids, id) {
				ids = append(ids, id)
			}
		}
	}
	for _, id := range ids {
		if w.only != "" && id != w.only {
			continue
		}
		r, err := w.s.c.Access.Get(ctx, p, id)
		if e, ok := reason.Of(err); ok && e.Code == apiv1.Code_CODE_NOT_FOUND {
			continue
		}
		if err != nil {
			return err
		}
		_, known := w.sent[id]
		if w.only == "" && !known && !access.Matches(p, w.query, r) {
			continue
		}
		if err := w.send(ctx, r); err != nil {
			return err
		}
		if w.only == "" && !access.Matches(p, w.query, r) {
			delete(w.sent, id)
			delete(w.granted, id)
		}
	}
	return nil
}

func (w *watcher) send(ctx context.Context, r *request.Request) error {
	out, err := w.s.request(ctx, r)
	if err != nil {
		return err
	}
	encoded, err := proto.MarshalOptions{Deterministic: true}.Marshal(out)
	if err != nil {
		return err
	}
	digest := sha256.Sum256(encoded)
	if w.sent[r.ID] == digest {
		return nil
	}
	if len(w.sent) >= maxWatched {
		clear(w.sent)
		clear(w.granted)
	}
	w.sent[r.ID] = digest
	if delete(w.granted, r.ID); r.State == request.Granted {
		w.granted[r.ID] = r
	}
	return w.stream.Send(&apiv1.WatchRequestsResponse{Request: out})
}

// ListRecords implements curfew.api.v1.Access.
func (s *Server) ListRecords(
	req *apiv1.ListRecordsRequest, stream grpc.ServerStreamingServer[apiv1.ListRecordsResponse],
) error {
	ctx := stream.Context()
	p, err := personOf(ctx)
	if err != nil {
		return err
	}
	sub := s.c.Bell.Subscribe(watchDepth)
	defer sub.Close()
	l := &lister{s: s, req: req, stream: stream, next: req.GetFrom(), left: -1}
	if req.GetLimit() > 0 {
		l.left = int(req.GetLimit())
	}
	if err := l.drain(ctx, p, true); err != nil || !req.GetFollow() {
		return err
	}
	err = s.follow(ctx, sub, func(p identity.Person, c watch.Change) error {
		if !c.Records {
			return nil
		}
		return l.drain(ctx, p, false)
	})
	if errors.Is(err, errEnough) {
		return nil
	}
	return err
}

var errEnough = errors.New("as many records as were asked for")

// lister is one ListRecords call.
type lister struct {
	s      *Server
	req    *apiv1.ListRecordsRequest
	stream grpc.ServerStreamingServer[apiv1.ListRecordsResponse]
	next   uint64
	left   int // records; -1 for no limit
}

// drain sends what there is from next on. The first answer is sent even when it is empty: it carries
// the trail's head.
func (l *lister) drain(ctx context.Context, p identity.Person, first bool) error {
	for {
		limit := recordsBatch
		if l.left >= 0 {
			limit = min(limit, l.left)
		}
		if limit == 0 {
			if l.req.GetFollow() {
				return errEnough
			}
			return nil
		}
		records, count, head, err := l.s.c.Access.Records(ctx, p, l.next, l.req.GetRequestId(),
			l.req.GetAll(), limit)
		if err != nil {
			return err
		}
		if len(records) == 0 && !first {
			return nil
		}
		first = false
		if l.left >= 0 {
			l.left -= len(records)
		}
		if err := l.send(records, count, head); err != nil {
			return err
		}
		if len(records) < limit {
			return nil
		}
	}
}

// send sends records in answers that no client finds too long.
func (l *lister) send(records []access.Record, count uint64, head []byte) error {
	resp, size := &apiv1.ListRecordsResponse{TrailCount: count, TrailHead: head}, 0
	for _, r := range records {
		if size += len(r.Leaf); size > maxAnswer && len(resp.Records) > 0 {
			if err := l.stream.Send(resp); err != nil {
				return err
			}
			resp = &apiv1.ListRecordsResponse{TrailCount: count, TrailHead: head}
			size = len(r.Leaf)
		}
		resp.Records = append(resp.Records, &apiv1.Record{Number: r.Number, Leaf: r.Leaf})
		l.next = r.Number + 1
	}
	return l.stream.Send(resp)
}
