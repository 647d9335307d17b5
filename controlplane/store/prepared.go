package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
)

// maxPrepared is how many statements a connection keeps; queries are a fixed set, nearly all of them.
const maxPrepared = 400

// runner is what transactions need of a connection.
type runner interface {
	ExecContext(ctx context.Context, query string, args ...any) (sql.Result, error)
	QueryContext(ctx context.Context, query string, args ...any) (*sql.Rows, error)
	QueryRowContext(ctx context.Context, query string, args ...any) *sql.Row
}

// prepared is one connection that keeps its statements: to compile one costs more than to run it. One
// goroutine at a time.
type prepared struct {
	conn       *sql.Conn
	statements map[string]statement
	did        kind // what those did that ran since somebody last looked
	ran        int  // how many were asked for: what a change costs is mostly that
}

type statement struct {
	*sql.Stmt
	kind kind
}

func prepare(ctx context.Context, db *sql.DB) (*prepared, error) {
	conn, err := db.Conn(ctx)
	if err != nil {
		return nil, fmt.Errorf("opening the store: %w", err)
	}
	return &prepared{conn: conn, statements: make(map[string]statement)}, nil
}

func (p *prepared) statement(ctx context.Context, query string) (*sql.Stmt, error) {
	p.ran++
	if s, ok := p.statements[query]; ok {
		p.note(s.kind)
		return s.Stmt, nil
	}
	if len(p.statements) >= maxPrepared {
		if err := p.forget(); err != nil {
			return nil, err
		}
	}
	s, err := p.conn.PrepareContext(ctx, query)
	if err == nil {
		p.statements[query] = statement{Stmt: s, kind: kindOf(query)}
		p.note(kindOf(query))
	}
	return s, err
}

func (p *prepared) note(k kind) {
	p.did.writes, p.did.directory = p.did.writes || k.writes, p.did.directory || k.directory
}

func (p *prepared) forget() error {
	var err error
	for query, s := range p.statements {
		err = errors.Join(err, s.Close())
		delete(p.statements, query)
	}
	return err
}

// ExecContext implements runner.
func (p *prepared) ExecContext(ctx context.Context, query string, args ...any) (sql.Result, error) {
	s, err := p.statement(ctx, query)
	if err != nil {
		return nil, err
	}
	return s.ExecContext(ctx, args...)
}

// QueryContext implements runner.
func (p *prepared) QueryContext(ctx context.Context, query string, args ...any) (*sql.Rows, error) {
	s, err := p.statement(ctx, query)
	if err != nil {
		return nil, err
	}
	return s.QueryContext(ctx, args...)
}

// QueryRowContext implements runner.
func (p *prepared) QueryRowContext(ctx context.Context, query string, args ...any) *sql.Row {
	s, err := p.statement(ctx, query)
	if err != nil {
		return p.conn.QueryRowContext(ctx, query, args...) // which says why
	}
	return s.QueryRowContext(ctx, args...)
}

func (p *prepared) close() error {
	if p == nil {
		return nil
	}
	return errors.Join(p.forget(), p.conn.Close())
}
