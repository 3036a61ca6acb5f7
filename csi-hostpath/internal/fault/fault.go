// Package fault names the moments at which a crash or a failing disk must do no harm, so that tests can kill the
// process, or let the step fail, exactly there.
package fault

// Hook is called with the name of a durable step before that step is taken. An error makes the step fail; tests that
// prove crash safety kill the process inside the hook. The zero value does nothing.
type Hook func(step string) error

// At reports the step to the hook.
func (h Hook) At(step string) error {
	if h == nil {
		return nil
	}
	return h(step)
}
