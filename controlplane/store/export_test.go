package store

// Statements is how many statements ran on all connections since the store was opened.
func (s *Store) Statements() int {
	s.turn <- struct{}{}
	defer func() { <-s.turn }()
	n := s.writer.ran
	for range s.reading {
		r := <-s.idle
		defer func() { s.idle <- r }()
		n += r.ran
	}
	return n
}
