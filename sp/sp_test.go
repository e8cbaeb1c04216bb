package sp_test

import (
	"testing"

	"github.com/sledvault/sledvault/sp/sptest"
)

func TestPipe(t *testing.T) { sptest.Run(t, sptest.Pipe()) }

func TestPty(t *testing.T) { sptest.Run(t, sptest.Pty()) }
