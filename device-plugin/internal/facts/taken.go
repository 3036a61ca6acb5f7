package facts

import "sync"

// Taken puts together what the launcher wrote and which image it is, which the launcher cannot know itself. The zero
// value knows neither.
type Taken struct {
	mu     sync.Mutex
	files  Snapshot
	digest string
}

// Files takes a new state of the files and returns what is known now.
func (t *Taken) Files(s Snapshot) Snapshot {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.files = s
	return t.snapshot()
}

// Image takes the digest of the image, "" for not known, and returns what is known now.
func (t *Taken) Image(digest string) Snapshot {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.digest = digest
	return t.snapshot()
}

func (t *Taken) snapshot() Snapshot {
	s := t.files
	if s.CPU != nil && s.CPU.Launcher == "" && t.digest != "" {
		cpu := *s.CPU
		cpu.Launcher = t.digest
		s.CPU = &cpu
	}
	return s
}
