// Command dns is CoreDNS with the few plugins that a local cluster needs.
package main

import (
	_ "github.com/coredns/coredns/plugin/cache"
	_ "github.com/coredns/coredns/plugin/errors"
	_ "github.com/coredns/coredns/plugin/kubernetes"
	_ "github.com/coredns/coredns/plugin/reload"

	"github.com/coredns/coredns/core/dnsserver"
	"github.com/coredns/coredns/coremain"
)

func main() {
	// The order in which plugins see a query is the order of this list.
	dnsserver.Directives = []string{"reload", "errors", "cache", "kubernetes"}
	coremain.Run()
}
