package secret_test

import (
	"bytes"
	"encoding/base64"
	"encoding/gob"
	"encoding/hex"
	"encoding/json"
	"encoding/xml"
	"errors"
	"fmt"
	"log/slog"
	"reflect"
	"runtime/debug"
	"strings"
	"testing"

	"github.com/fxamacker/cbor/v2"

	"github.com/sledvault/sledvault/vault/secret"
)

// pattern is printable, long enough to be found in any form, and occurs nowhere else.
var pattern = []byte("Qz7#Qz7#Qz7#Qz7#Qz7#Qz7#Qz7#Qz7#")

func make32[K secret.Kind](t testing.TB) secret.Bytes[K] {
	t.Helper()
	s, err := secret.Take[K](secret.Heap{}, bytes.Clone(pattern))
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// shows reports in which form a text shows at least four bytes of the pattern in a row.
func shows(text string) string {
	forms := map[string]string{"text": "Qz7#", "base64": base64.StdEncoding.EncodeToString(pattern)[4:12]}
	four := pattern[4:8]
	forms["hex"] = hex.EncodeToString(four)
	forms["hex with blanks"] = fmt.Sprintf("% x", four)
	forms["hex with prefix"] = fmt.Sprintf("% #x", four)
	forms["Go syntax"] = strings.Trim(strings.TrimPrefix(fmt.Sprintf("%#v", four), "[]byte"), "{}")
	forms["JSON numbers"] = strings.ReplaceAll(strings.Trim(fmt.Sprint(four), "[]"), " ", ",")
	forms["bytes in a traceback"] = "0x51, 0x7a, 0x37, 0x23"
	for _, verb := range "bdoqxXUc" {
		forms["verb "+string(verb)] = strings.Trim(fmt.Sprintf("%"+string(verb), four), `[]"`)
	}
	forms["little-endian word"] = "0x23377a51"
	lower := strings.ToLower(text)
	for name, form := range forms {
		if strings.Contains(lower, strings.ToLower(form)) {
			return name
		}
	}
	return ""
}

type exported struct {
	S    secret.RackSecret
	P    *secret.RackSecret
	List []secret.Share
	Map  map[string]secret.DiskKey
	Any  any
}

type hidden struct {
	s    secret.RackSecret
	p    *secret.RackSecret
	list []secret.Share
	m    map[string]secret.DiskKey
	any  any
}

type embedded struct{ secret.RackSecret }

// holders returns values that hold a secret in every way in which structures do.
func holders(t testing.TB) map[string]any {
	t.Helper()
	s := make32[secret.RackSecretKind](t)
	shares := []secret.Share{make32[secret.ShareKind](t)}
	keys := map[string]secret.DiskKey{"disk": make32[secret.DiskKeyKind](t)}
	e, h := exported{s, &s, shares, keys, s}, hidden{s, &s, shares, keys, s}
	return map[string]any{
		"value": s, "pointer": &s, "slice": shares, "map": keys, "array": [1]secret.RackSecret{s},
		"exported fields": e, "pointer to exported fields": &e,
		"unexported fields": h, "pointer to unexported fields": &h,
		"embedded": embedded{s}, "pointer to embedded": &embedded{s},
		"holder in a holder": struct{ h *hidden }{&h}, "any": []any{s, &s, e, &h},
		"error": fmt.Errorf("wrapped %v and %x", s, h),
	}
}

const verbs = "vTtbcdoOqxXUeEfFgGsp"

func TestFormatShowsNothing(t *testing.T) {
	t.Parallel()
	for name, v := range holders(t) {
		for _, verb := range verbs {
			for _, flag := range []string{"", "+", "#", " ", "0", "-", "# ", "+#", "40.3"} {
				f := "%" + flag + string(verb)
				if form := shows(fmt.Sprintf(f, v)); form != "" {
					t.Errorf("%s printed with %s shows the secret as %s", name, f, form)
				}
			}
		}
		if form := shows(fmt.Sprint(v, fmt.Sprintln(v))); form != "" {
			t.Errorf("%s printed shows the secret as %s", name, form)
		}
	}
}

func TestFormatNamesTheKind(t *testing.T) {
	t.Parallel()
	if got := fmt.Sprintf("%s %d %#v", make32[secret.SeedKind](t), make32[secret.PRKKind](t), make32[secret.AuthValueKind](t)); got != "(seed) (pseudo-random key) (auth value)" {
		t.Errorf("have %q", got)
	}
	for _, v := range []any{
		make32[secret.RackSecretKind](t), make32[secret.ShareKind](t), make32[secret.DiskKeyKind](t),
		make32[secret.SealKeyKind](t), make32[secret.PlaintextKind](t),
		secret.RackSecret{},
	} {
		if got := fmt.Sprint(v); !strings.HasPrefix(got, "(") || !strings.HasSuffix(got, ")") {
			t.Errorf("%T prints as %q", v, got)
		}
	}
}

func TestLogsShowNothing(t *testing.T) {
	t.Parallel()
	for name, v := range holders(t) {
		var out bytes.Buffer
		opt := &slog.HandlerOptions{AddSource: true, Level: slog.LevelDebug}
		for _, h := range []slog.Handler{slog.NewTextHandler(&out, opt), slog.NewJSONHandler(&out, opt)} {
			l := slog.New(h).With("with", v).WithGroup("group")
			l.Error("message", "key", v, slog.Any("any", v), slog.Group("inner", "deep", v))
		}
		if form := shows(out.String()); form != "" {
			t.Errorf("%s logged shows the secret as %s: %s", name, form, out.String())
		}
	}
}

// encoders are the ways in which a value could leave as bytes.
var encoders = map[string]func(any) ([]byte, error){
	"json":        json.Marshal,
	"json indent": func(v any) ([]byte, error) { return json.MarshalIndent(v, "", " ") },
	"xml":         xml.Marshal,
	"cbor":        cbor.Marshal,
	"gob": func(v any) ([]byte, error) {
		var b bytes.Buffer
		err := gob.NewEncoder(&b).Encode(v)
		return b.Bytes(), err
	},
}

func TestEncodersRefuse(t *testing.T) {
	t.Parallel()
	for enc, encode := range encoders {
		for name, v := range holders(t) {
			out, err := encode(v)
			if form := shows(string(out)); form != "" {
				t.Errorf("%s of %s shows the secret as %s", enc, name, form)
			}
			// A holder of unexported fields encodes as empty; anything else must refuse, in whatever words.
			if direct := name == "value" || name == "pointer" || strings.HasSuffix(name, "exported fields") && !strings.Contains(name, "unexported"); direct && err == nil {
				t.Errorf("%s of %s: have %q, want an error", enc, name, out)
			}
		}
	}
	s := make32[secret.RackSecretKind](t)
	for name, f := range map[string]func() ([]byte, error){
		"text": s.MarshalText, "json": s.MarshalJSON, "binary": s.MarshalBinary, "cbor": s.MarshalCBOR, "gob": s.GobEncode,
	} {
		if out, err := f(); out != nil || !errors.Is(err, secret.ErrEncode) {
			t.Errorf("%s: have %q, %v", name, out, err)
		}
	}
}

//go:noinline
func stackOf(_ secret.RackSecret, _ *secret.Share, _ exported) string { return string(debug.Stack()) }

//go:noinline
func stackOfArray(_ [32]byte) string { return string(debug.Stack()) }

func TestTracebackShowsNothing(t *testing.T) {
	t.Parallel()
	s, share := make32[secret.RackSecretKind](t), make32[secret.ShareKind](t)
	if form := shows(stackOfArray([32]byte(pattern))); form == "" {
		t.Error("control: an array passed by value does not show, so this test could not notice a leak")
	}
	if form := shows(stackOf(s, &share, exported{S: s})); form != "" {
		t.Errorf("traceback shows the secret as %s", form)
	}
	err := s.Use(func(b []byte) error {
		if form := shows(string(debug.Stack())); form != "" {
			t.Errorf("traceback inside Use shows the secret as %s", form)
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
}

func TestPanicValueShowsNothing(t *testing.T) {
	t.Parallel()
	defer func() {
		if form := shows(fmt.Sprintf("%v %+v %#v", recover(), nil, nil)); form != "" {
			t.Errorf("panic shows the secret as %s", form)
		}
	}()
	panic(exported{S: make32[secret.RackSecretKind](t)})
}

// Leaky is what a secret must not be.
type Leaky struct{ B []byte }

// The habits that this package exists to avoid do show: the search finds what it looks for.
func TestSearchFindsLeaks(t *testing.T) {
	t.Parallel()
	array := [32]byte(pattern)
	for _, text := range []string{
		fmt.Sprintf("%d", array), fmt.Sprintf("%x", array), fmt.Sprintf("%#v", array), fmt.Sprintf("%v", struct{ b []byte }{pattern}),
		fmt.Sprintf("%s", pattern), fmt.Sprintf("%q", pattern), fmt.Sprintf("%X", pattern), fmt.Sprintf("% x", pattern), fmt.Sprintf("%b", pattern),
	} {
		if shows(text) == "" {
			t.Errorf("not found in %.60q", text)
		}
	}
	for name, encode := range encoders {
		if out, err := encode(Leaky{pattern}); err != nil || shows(string(out)) == "" {
			t.Errorf("%s: not found in %.60q (%v)", name, out, err)
		}
	}
}

// A type that reflection calls not comparable is one for which == does not compile.
func TestNotComparable(t *testing.T) {
	t.Parallel()
	for _, typ := range []reflect.Type{reflect.TypeFor[secret.RackSecret](), reflect.TypeFor[secret.Share](), reflect.TypeFor[exported]()} {
		if typ.Comparable() {
			t.Errorf("%v can be compared with ==", typ)
		}
	}
}
