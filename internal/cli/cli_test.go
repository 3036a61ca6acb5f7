package cli

import (
	"bytes"
	"strings"
	"testing"

	"k8s.io/klog/v2"
)

func TestWithLoggerVerbosity(t *testing.T) {
	var out bytes.Buffer
	ctx := WithLogger(t.Context(), &out, 2)
	logger := klog.FromContext(ctx)
	logger.V(2).Info("shown", "vm", "db1")
	logger.V(3).Info("hidden")

	if got := out.String(); !strings.Contains(got, `"msg":"shown","vm":"db1"`) || strings.Contains(got, "hidden") {
		t.Errorf("log = %q; want the line of V(2) as JSON and not that of V(3)", got)
	}
}
