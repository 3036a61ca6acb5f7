package main

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	authorizationv1 "k8s.io/api/authorization/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"podvirt.dev/api"
	"podvirt.dev/internal/apitest"
)

// wantRights: what the account of the manifests may do in its own namespace, as `kubectl auth can-i --list` prints it, is
// what is written here, apart from what every account may. testdata/rights.txt is written with UPDATE=1 (SC-090).
func wantRights(t *testing.T, server *apitest.Server) {
	t.Helper()
	server.Make(t, api.SystemNamespace, "nobody")
	own, others := rights(t, server, "podvirt-scheduler"), rights(t, server, "nobody")
	own = slices.DeleteFunc(own, func(line string) bool { return slices.Contains(others, line) })
	got := strings.Join(own, "\n") + "\n"
	file := filepath.Join("testdata", "rights.txt")
	if os.Getenv("UPDATE") != "" {
		if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), got); diff != "" {
		t.Errorf("%s (-want,+got):\n%s", file, diff)
	}
	if strings.Contains(got, "secrets") || strings.Contains(got, "*.*") {
		t.Errorf("it may read secrets:\n%s", got)
	}
}

// rights are one line each, sorted.
func rights(t *testing.T, server *apitest.Server, account string) []string {
	t.Helper()
	client, err := kubernetes.NewForConfig(server.Account(t, api.SystemNamespace, account))
	if err != nil {
		t.Fatal(err)
	}
	review, err := client.AuthorizationV1().SelfSubjectRulesReviews().Create(t.Context(), &authorizationv1.SelfSubjectRulesReview{
		Spec: authorizationv1.SelfSubjectRulesReviewSpec{Namespace: api.SystemNamespace},
	}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	var lines []string
	for _, rule := range review.Status.ResourceRules {
		for _, group := range rule.APIGroups {
			for _, resource := range rule.Resources {
				name := resource
				if group != "" {
					name += "." + group
				}
				slices.Sort(rule.Verbs)
				lines = append(lines, strings.TrimSpace(fmt.Sprintf("%s %s %s", name, strings.Join(rule.Verbs, ","), strings.Join(rule.ResourceNames, ","))))
			}
		}
	}
	slices.Sort(lines)
	return slices.Compact(lines)
}
