package program

import (
	"os"

	"podvirt.dev/api"
	"podvirt.dev/launcher/internal/podenv"
)

// load reads the Pod and resolves the VM; the annotations are what it was resolved from. The errors are api.Errors
// where the user wrote something wrong.
func load() (api.Machine, map[string]string, error) {
	env, err := podenv.Read(os.DirFS("/"))
	if err != nil {
		return api.Machine{}, nil, err
	}
	vm, errs := api.Resolve(env.Pod, api.Config{})
	return vm, env.Pod.Annotations, errs.Err()
}
