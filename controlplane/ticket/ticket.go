// Package ticket asks the systems that know about tickets whether one is good for a request.
//
// It is a leaf: it decides nothing. The policy file names a check, the configuration says where it is,
// and what it answers is a fact for package policy. What is sent is signed like a webhook of package
// notify; only a clear yes counts as one, and no answer is an error, which opens nothing.
package ticket

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"time"

	"github.com/curfew-access/curfew/controlplane/notify"
	"github.com/curfew-access/curfew/controlplane/policy"
	"github.com/curfew-access/curfew/controlplane/request"
	"github.com/curfew-access/curfew/internal/grant"
)

const (
	timeout   = 5 * time.Second
	maxAnswer = 64 << 10
	maxText   = 300
)

// Check is one system that is asked. Secret signs what it gets.
type Check struct {
	URL    string
	Secret []byte
}

// Asker asks checks by their names. Safe for concurrent use.
type Asker struct {
	checks map[string]Check
	client *http.Client
	now    func() time.Time
}

// New makes an Asker; nil transport takes http.DefaultTransport's behaviour.
func New(checks map[string]Check, transport http.RoundTripper, now func() time.Time) (*Asker, error) {
	if now == nil {
		return nil, errors.New("ticket checks: the clock is missing")
	}
	for name, c := range checks {
		if err := notify.CheckURL(c.URL); err != nil {
			return nil, fmt.Errorf("ticket check %s: %w", name, err)
		}
	}
	return &Asker{checks: checks, now: now, client: &http.Client{
		Timeout: timeout, Transport: transport,
		// A redirect could make anybody the system that knows.
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}}, nil
}

// Question is what a check gets.
type Question struct {
	Ticket     string   `json:"ticket"`
	Requester  string   `json:"requester"`
	Role       string   `json:"role"`
	Hosts      []string `json:"hosts"`
	DurationMS int64    `json:"duration_ms"`
	Reason     string   `json:"reason"`
}

// Answer is what a check says: 200 with this. Anything else is no answer.
type Answer struct {
	OK bool `json:"ok"`
	// Text is why not, for people.
	Text string `json:"text"`
}

// Check asks the check of that name about an ask's ticket.
func (a *Asker) Check(ctx context.Context, name string, ask request.Ask) (policy.TicketCheck, error) {
	var none policy.TicketCheck
	c, ok := a.checks[name]
	if !ok {
		return none, fmt.Errorf("ticket check %s is not configured", name)
	}
	body, err := json.Marshal(Question{
		Ticket: ask.Ticket, Requester: ask.Requester, Role: ask.Role, Hosts: ask.Hosts,
		DurationMS: ask.Longest().Milliseconds(), Reason: ask.Reason,
	})
	if err != nil {
		return none, err
	}
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, c.URL, bytes.NewReader(body))
	if err != nil {
		return none, err
	}
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("User-Agent", "curfew-controlplane")
	req.Header.Set("Curfew-Signature", notify.Signature(c.Secret, a.now(), body))
	resp, err := a.client.Do(req)
	if err != nil {
		return none, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return none, fmt.Errorf("ticket check %s answered %s", name, resp.Status)
	}
	data, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer+1))
	if err != nil {
		return none, err
	}
	return parse(name, data)
}

func parse(name string, data []byte) (policy.TicketCheck, error) {
	var answer Answer
	if len(data) > maxAnswer {
		return policy.TicketCheck{}, fmt.Errorf("ticket check %s answered with more than %d bytes", name,
			maxAnswer)
	}
	if err := json.Unmarshal(data, &answer); err != nil {
		return policy.TicketCheck{}, fmt.Errorf("ticket check %s answered no JSON: %w", name, err)
	}
	text := grant.VisibleText(answer.Text)
	if !answer.OK && text == "" {
		text = "it gives no reason"
	}
	return policy.TicketCheck{OK: answer.OK, Text: grant.Clip(text, maxText)}, nil
}
