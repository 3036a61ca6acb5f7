package program

import (
	"errors"
	"os"

	"podvirt.dev/api"
	"podvirt.dev/launcher/internal/podenv"
)

// load reads the Pod and resolves the VM. The errors are api.Errors where the user wrote something wrong.
func load() (api.Machine, error) {
	env, err := podenv.Read(os.DirFS("/"))
	if err != nil {
		return api.Machine{}, err
	}
	vm, errs := api.Resolve(env.Pod, api.Config{})
	return vm, errs.Err()
}

// isConfig says whether an error is the user's to mend.
func isConfig(err error) bool {
	var errs api.Errors
	return errors.As(err, &errs) || errors.Is(err, podenv.ErrNoPodVolume)
}
