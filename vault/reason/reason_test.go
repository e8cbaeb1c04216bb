package reason_test

import (
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"
	"testing"

	"github.com/sledvault/sledvault/vault/reason"
)

func TestError(t *testing.T) {
	cause := reason.New("inner", "do this", "inner: refused")
	err := fmt.Errorf("outside: %w", reason.Wrap(cause, "outer", "", "outer: have %d, want %d", 1, 2))
	if got := err.Error(); got != "outside: outer: have 1, want 2: inner: refused" {
		t.Errorf("text: %q", got)
	}
	if reason.CodeOf(err) != "outer" || reason.HintOf(err) != "do this" || reason.RemedyOf(err) != reason.Operator {
		t.Errorf("have %q, %q, %v", reason.CodeOf(err), reason.HintOf(err), reason.RemedyOf(err))
	}
	if !errors.Is(err, &reason.Error{Code: "inner"}) || errors.Is(err, &reason.Error{Code: "other"}) {
		t.Error("errors.Is does not go by code")
	}
	if reason.CodeOf(io.EOF) != "" || reason.HintOf(io.EOF) != "" || reason.RemedyOf(io.EOF) != reason.Operator {
		t.Error("a plain error has neither code nor hint, and asks for the operator")
	}
	if r := reason.RemedyOf(reason.Later("x", "", "y")); r != reason.Retry {
		t.Errorf("Later: have %v", r)
	}
	for r, want := range map[reason.Remedy]string{reason.Operator: "operator", reason.Retry: "retry", reason.Usage: "usage"} {
		if r.String() != want {
			t.Errorf("have %q, want %q", r, want)
		}
	}
}

func TestLog(t *testing.T) {
	l := reason.NewLog()
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			for range 100 {
				l.Count("a", fmt.Sprint("peer ", i%2), "cause")
			}
		})
	}
	wg.Wait()
	l.CountError("fallback", "p", io.EOF)
	l.CountError("fallback", "p", reason.New("own", "", "text"))
	if l.Total("a") != 800 || l.Total("fallback") != 1 || l.Total("own") != 1 || l.Total("never") != 0 {
		t.Errorf("have %+v", l.Entries())
	}
	e := l.Entries()
	if len(e) != 4 || e[0].Code != "a" || e[0].Peer != "peer 0" || e[1].Peer != "peer 1" || e[0].Count != 400 || e[0].Last != "cause" {
		t.Errorf("have %+v", e)
	}
}

// A stranger who varies his address fills neither memory nor status.
func TestLogIsBounded(t *testing.T) {
	l := reason.NewLog()
	for i := range 5000 {
		l.Count("a", fmt.Sprint(i), strings.Repeat("x", 10000))
	}
	e := l.Entries()
	if len(e) > 1100 || l.Total("a") != 5000 {
		t.Errorf("have %d entries with %d counts", len(e), l.Total("a"))
	}
	if len(e[0].Last) > 600 {
		t.Errorf("a cause of %d bytes is kept", len(e[0].Last))
	}
}

// TestRoutine: what happens every day is counted apart, until it happens otherwise.
func TestRoutine(t *testing.T) {
	t.Parallel()
	l := reason.NewLog()
	l.CountRoutine("late", "p", "one")
	l.CountRoutine("late", "p", "two")
	l.Count("bad", "p", "three")
	if e := l.Entries(); len(e) != 2 || e[0].Routine || !e[1].Routine || e[1].Count != 2 || e[1].Last != "two" {
		t.Errorf("have %+v", e)
	}
	l.Count("late", "p", "not as every day")
	l.CountRoutine("late", "p", "four")
	if e := l.Entries(); e[1].Routine || e[1].Count != 4 {
		t.Errorf("have %+v", e)
	}
}
