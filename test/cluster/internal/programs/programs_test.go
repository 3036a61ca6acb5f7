package programs

import "testing"

func TestModuleVersion(t *testing.T) {
	const mod = "module x\n\nrequire go.etcd.io/etcd/server/v3 v3.6.8\n\nrequire (\n\tk8s.io/kubernetes v1.37.1 // indirect\n)\n" +
		"replace k8s.io/api => k8s.io/api v0.37.1\ntool k8s.io/kubernetes/cmd/kubelet\n"
	tests := map[string]struct {
		path, want string
		fails      bool
	}{
		"block":    {path: "k8s.io/kubernetes", want: "v1.37.1"},
		"line":     {path: "go.etcd.io/etcd/server/v3", want: "v3.6.8"},
		"replaced": {path: "k8s.io/api", fails: true},
		"absent":   {path: "example.org/x", fails: true},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			got, err := moduleVersion(mod, tt.path)
			if got != tt.want || (err != nil) != tt.fails {
				t.Errorf("moduleVersion(%q) = %q, %v; want %q, error %v", tt.path, got, err, tt.want, tt.fails)
			}
		})
	}
}
