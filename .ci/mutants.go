// Mutants tries what gremlins leaves out, and sums both up: go run .ci/mutants.go PACKAGE GREMLINS.json
//
// Gremlins asks the coverage of Go which statements a test reaches, and calls a mutant "not covered" where that knows
// none: in conditions of case clauses and in constants. Each of those is tried here with an overlay of its file. What
// gremlins could not try because no test reaches it lives here too, as it should.
package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// other is what each operator becomes, as in gremlins.
var other = map[string]map[string]string{
	"CONDITIONALS_BOUNDARY": {"<": "<=", "<=": "<", ">": ">=", ">=": ">"},
	"CONDITIONALS_NEGATION": {"==": "!=", "!=": "==", "<": ">=", "<=": ">", ">": "<=", ">=": "<"},
	"ARITHMETIC_BASE":       {"+": "-", "-": "+", "*": "/", "/": "*", "%": "*"},
	"INCREMENT_DECREMENT":   {"++": "--", "--": "++"},
	"INVERT_LOGICAL":        {"&&": "||", "||": "&&"},
	"INVERT_BITWISE":        {"&": "|", "|": "&", "^": "&", "&^": "&", "<<": ">>", ">>": "<<"},
	"INVERT_NEGATIVES":      {"-": "+"},
}

type report struct {
	Files []struct {
		Name      string `json:"file_name"`
		Mutations []struct {
			Type, Status string
			Line, Column int
		}
	}
}

func main() {
	if len(os.Args) != 3 {
		fail("usage: go run .ci/mutants.go PACKAGE GREMLINS.json")
	}
	raw, err := os.ReadFile(os.Args[2])
	check(err)
	var r report
	check(json.Unmarshal(raw, &r))
	dir, err := os.MkdirTemp("", "mutants")
	check(err)
	defer func() { _ = os.RemoveAll(dir) }()
	count := map[string]int{}
	for _, f := range r.Files {
		path, err := filepath.Abs(filepath.Join(os.Args[1], f.Name))
		check(err)
		for _, m := range f.Mutations {
			if m.Status == "NOT COVERED" {
				m.Status = try(dir, path, m.Type, m.Line, m.Column)
			}
			if m.Status == "LIVED" {
				fmt.Printf("%s:%d:%d: %s lived\n", f.Name, m.Line, m.Column, m.Type)
			}
			count[m.Status]++
		}
	}
	killed, lived := count["KILLED"]+count["TIMED OUT"], count["LIVED"]
	fmt.Printf("%s: %d mutants, %d killed, %d lived, %d do not compile: %.1f %%\n",
		os.Args[1], killed+lived, killed, lived, count["NOT VIABLE"], 100*float64(killed)/float64(max(1, killed+lived)))
}

// try runs the tests of one mutant.
func try(dir, path, kind string, line, column int) string {
	src, err := os.ReadFile(path)
	check(err)
	at := 0
	for range line - 1 {
		at += bytes.IndexByte(src[at:], '\n') + 1
	}
	at += column - 1
	operator := ""
	for o := range other[kind] {
		if bytes.HasPrefix(src[at:], []byte(o)) && len(o) > len(operator) {
			operator = o
		}
	}
	if operator == "" {
		return "NOT VIABLE"
	}
	mutant := filepath.Join(dir, "mutant.go")
	check(os.WriteFile(mutant, bytes.Join([][]byte{src[:at], []byte(other[kind][operator]), src[at+len(operator):]}, nil), 0o600))
	overlay := filepath.Join(dir, "overlay.json")
	text, err := json.Marshal(map[string]any{"Replace": map[string]string{path: mutant}})
	check(err)
	check(os.WriteFile(overlay, text, 0o600))
	out, err := exec.Command("go", "test", "-overlay", overlay, "-vet=off", "-failfast", "-timeout", "5m", os.Args[1]).CombinedOutput()
	switch {
	case err == nil:
		return "LIVED"
	case strings.Contains(string(out), "[build failed]"):
		return "NOT VIABLE"
	}
	return "KILLED"
}

func check(err error) {
	if err != nil {
		fail(err.Error())
	}
}

func fail(text string) {
	fmt.Fprintln(os.Stderr, "mutants:", text)
	os.Exit(1)
}
