package policy

import "k8s.io/apimachinery/pkg/runtime"

func setDefaults(runtime.Object) {}
