// Package lifecycle runs one VM from its first step to its last: the steps of a start with their undo, the loop that
// follows the hypervisor's events, the graceful stop, and the outcome that becomes exit code and termination message.
package lifecycle

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"k8s.io/klog/v2"
)

// Step is one named part of a start. Undo may be nil; it is called where a later step fails, and must succeed where its
// work is gone already.
type Step struct {
	Name string
	Do   func(ctx context.Context) error
	Undo func(ctx context.Context) error
}

// StepError says which step failed.
type StepError struct {
	Step string
	Err  error
}

// Error returns the cause alone: a user does not know the steps, and the log names them.
func (e *StepError) Error() string { return e.Err.Error() }

// Unwrap returns the cause.
func (e *StepError) Unwrap() error { return e.Err }

// undoPatience bounds the undo of all steps; what follows is the end of the container, which undoes the rest.
const undoPatience = 10 * time.Second

// RunSteps does the steps in order and returns how long each took. Where one fails, those before it are undone in
// reverse order, also when ctx has ended.
func RunSteps(ctx context.Context, steps []Step) (map[string]time.Duration, error) {
	logger := klog.FromContext(ctx)
	took := make(map[string]time.Duration, len(steps))
	for i, s := range steps {
		begin := time.Now()
		err := s.Do(ctx)
		took[s.Name] = time.Since(begin)
		if err == nil {
			logger.V(2).Info("step done", "step", s.Name, "seconds", took[s.Name].Seconds())
			continue
		}
		err = &StepError{Step: s.Name, Err: err}
		return took, errors.Join(err, undo(ctx, steps[:i]))
	}
	return took, nil
}

func undo(ctx context.Context, done []Step) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoPatience)
	defer cancel()
	var errs []error
	for _, step := range slices.Backward(done) {
		if step.Undo == nil {
			continue
		}
		if err := step.Undo(ctx); err != nil {
			errs = append(errs, fmt.Errorf("undo of %s: %w", step.Name, err))
		}
	}
	return errors.Join(errs...)
}
