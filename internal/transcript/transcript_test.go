package transcript

import (
	"fmt"
	"strings"
	"sync"
	"testing"
)

func TestNoWriteIsMissed(t *testing.T) {
	const writers, lines = 4, 500
	var (
		log  Transcript
		done sync.WaitGroup
	)
	for w := range writers {
		done.Go(func() {
			for range lines {
				if _, err := fmt.Fprintf(&log, "line of %d\n", w); err != nil {
					t.Error(err)
				}
			}
		})
	}
	for {
		text, more := log.Follow()
		if strings.Count(text, "\n") == writers*lines {
			break
		}
		<-more
	}
	done.Wait()
	if got := strings.Count(log.String(), "line of 0\n"); got != lines {
		t.Errorf("%d lines of the first writer, want %d", got, lines)
	}
}
