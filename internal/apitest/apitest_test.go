package apitest

import (
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
)

func TestStartServesAccountsAsThemselves(t *testing.T) {
	s := Start(t)
	client, err := kubernetes.NewForConfig(s.AccountOn(t, "default", "robot", "node-a"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := client.CoreV1().Secrets("default").List(t.Context(), metav1.ListOptions{}); err == nil {
		t.Error("an account without any role lists Secrets")
	}
}
