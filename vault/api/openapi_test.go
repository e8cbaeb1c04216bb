package api_test

import (
	"bytes"
	"encoding/json"
	"flag"
	"go/ast"
	"go/parser"
	"go/token"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/sledvault/sledvault/rot/enroll"
	"github.com/sledvault/sledvault/vault/api"
	"github.com/sledvault/sledvault/vault/ident"
	"github.com/sledvault/sledvault/vault/quorum"
)

var update = flag.Bool("update", false, "rewrite openapi.json")

// octets marks a body that is bytes, not JSON.
type octets struct{}

// routeDoc is what openapi.json says about one route. role is empty for routes of the underlay API only, access for
// routes of the local API only.
type routeDoc struct {
	summary string
	in, out any
	role    api.Role
	access  string
}

// routeDocs describes every route of both APIs. TestRoles and TestAccess hold it against what the servers do.
func routeDocs() map[string]routeDoc {
	return map[string]routeDoc{
		"GET /v1/status":                          {"What the sled does, waits for and has refused: at once, or locally when its revision is no longer ?after=, or after 30 s.", nil, api.Status{}, api.RoleObserve, "anyone"},
		"GET /v1/disks":                           {"The sled's disks.", nil, api.DisksReply{}, api.RoleObserve, ""},
		"GET /v1/tpm":                             {"The keys of the sled's TPM.", nil, api.TPMIdentity{}, api.RoleObserve, ""},
		"GET /v1/sp":                              {"The baseboard identity, read again over the serial line.", nil, api.SPIdentity{}, api.RoleObserve, ""},
		"POST /v1/unlock":                         {"Open every locked disk; below the threshold wait as asked, then name who is missing.", api.UnlockRequest{}, api.DisksReply{}, api.RoleUnlock, ""},
		"POST /v1/disks/{id}/format":              {"Encrypt a disk under the rack's newest epoch.", api.FormatRequest{}, api.Disk{}, api.RoleUnlock, ""},
		"POST /v1/disks/{id}/key":                 {"The 32 bytes of a disk's key. The release is recorded before the first byte leaves.", struct{}{}, octets{}, api.RoleUnlock, ""},
		"POST /v1/seal/reset":                     {"Forget the rack: counter and claim go from the TPM, the state is moved aside, and the daemon ends, to be started again.", api.ResetRequest{}, struct{}{}, api.RoleOperate, ""},
		"DELETE /v1/alarms":                       {"Forget every alarm, after an operator has looked at them.", nil, struct{}{}, api.RoleOperate, ""},
		"PUT /v1/peers":                           {"Replace the list of peer addresses.", api.PeersRequest{}, struct{}{}, api.RoleAgent, ""},
		"POST /v1/quorum/configuration":           {"Coordinate a configuration, with the operator's grant.", api.ReconfigureRequest{}, struct{}{}, api.RoleOperate, "controller"},
		"POST /v1/quorum/upgrade":                 {"Coordinate the first configuration after the older scheme, with the operator's grant.", api.UpgradeRequest{}, struct{}{}, api.RoleOperate, "controller"},
		"GET /v1/quorum/coordinator":              {"The progress of a coordination: at once, or when its version exceeds ?after=, or after 30 s.", nil, api.CoordinatorStatus{}, api.RoleOperate, "controller"},
		"PUT /v1/quorum/commit":                   {"Commit a prepared epoch, with the operator's certificate.", api.CommitRequest{}, api.CommitReply{}, api.RoleOperate, "controller"},
		"PUT /v1/quorum/prepare-and-commit":       {"Hand over a committed configuration. Answers when the sled has committed it, or \"pending\" after 30 s.", api.PrepareAndCommitRequest{}, api.CommitReply{}, api.RoleOperate, "controller"},
		"GET /v1/quorum/config":                   {"The latest committed configuration and its certificate; nulls if there is none.", nil, api.PrepareAndCommitRequest{}, api.RoleOperate, "controller"},
		"GET /v1/network-config":                  {"The rack's network configuration: at once, or when its generation exceeds ?after=, or after 30 s.", nil, api.NetworkConfig{}, api.RoleAgent, ""},
		"PUT /v1/network-config":                  {"Give the rack a newer network configuration. It is stored, then handed to the peers.", api.NetworkConfigRequest{}, api.NetworkConfig{}, api.RoleAgent, ""},
		"PUT /v1/quorum/proxy/commit":             {"Pass a commit on to another sled, over this one's connection to it.", api.ProxyCommitRequest{}, api.CommitReply{}, api.RoleOperate, "controller"},
		"PUT /v1/quorum/proxy/prepare-and-commit": {"Pass a committed configuration on to another sled. It answers at once: \"pending\" if it must first compute its share.", api.ProxyPrepareAndCommitRequest{}, api.CommitReply{}, api.RoleOperate, "controller"},
		"GET /v1/quorum/proxy/status":             {"What another sled's node says about itself, over this one's connection to it.", nil, api.NodeStatus{}, api.RoleOperate, "controller"},
		"POST /v1/enroll/begin":                   {"Show the sled's TPM, signed for this connection.", enroll.BeginRequest{}, enroll.BeginResponse{}, "", "claimant"},
		"POST /v1/enroll/activate":                {"Prove that the attestation key lives in the TPM of the endorsement key.", enroll.ActivateRequest{}, enroll.ActivateResponse{}, "", "claimant"},
		"PUT /v1/enroll/set":                      {"Hand over an enrolment set. The first one only on the connection that was activated; one that changes a key may come from anyone.", octets{}, api.SetReply{}, "", "setbearer"},
		"POST /v1/attest":                         {"Evidence bound to this connection.", api.AttestRequest{}, api.AttestReply{}, "", "controller"},
	}
}

// TestPatterns: the document describes the routes that exist, and no others.
func TestPatterns(t *testing.T) {
	t.Parallel()
	f := newFake()
	l, _ := serveLocal(t, f)
	u, _ := serveUnderlay(t, f)
	var local, underlay []string
	for p, d := range routeDocs() {
		if d.role != "" {
			local = append(local, p)
		}
		if d.access != "" {
			underlay = append(underlay, p)
		}
	}
	slices.Sort(local)
	slices.Sort(underlay)
	if have := l.Patterns(); !slices.Equal(have, local) {
		t.Errorf("local API: have %q, want %q", have, local)
	}
	if have := u.Patterns(); !slices.Equal(have, underlay) {
		t.Errorf("underlay API: have %q, want %q", have, underlay)
	}
}

// TestOpenAPI: the checked-in document is what routes and Go types say. -update rewrites it.
func TestOpenAPI(t *testing.T) {
	t.Parallel()
	want := openAPI(t)
	if *update {
		must(t, os.WriteFile("openapi.json", want, 0o644))
	}
	have, err := os.ReadFile("openapi.json")
	must(t, err)
	if !bytes.Equal(have, want) {
		t.Error("openapi.json is not what the code says; go test ./vault/api -run TestOpenAPI -update rewrites it")
	}
	if strings.Contains(string(want), "UNDOCUMENTED") {
		t.Error("a type has no comment")
	}
}

type object = map[string]any

func openAPI(t *testing.T) []byte {
	t.Helper()
	s := &schemas{out: object{}, docs: comments(t, ".", "../../rot/enroll", "../reason")}
	paths := object{}
	for _, p := range slices.Sorted(maps.Keys(routeDocs())) {
		method, path, _ := strings.Cut(p, " ")
		if paths[path] == nil {
			paths[path] = object{}
		}
		paths[path].(object)[strings.ToLower(method)] = s.operation(path, routeDocs()[p])
	}
	s.of(reflect.TypeFor[api.Error]())
	doc := object{
		"openapi": "3.1.0",
		"info": object{
			"title": "sledvault", "version": "1", "license": object{"name": "Apache-2.0", "identifier": "Apache-2.0"},
			"description": "The APIs of one sled. Local: HTTP/1.1 on a unix socket, x-local names the role that a caller needs. " +
				"Underlay: HTTP/1.1 over TLS 1.3, x-underlay names what the client must be. See docs/local-api.md.",
		},
		"paths":      paths,
		"components": object{"schemas": s.out},
	}
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", "  ")
	must(t, enc.Encode(doc))
	return b.Bytes()
}

type schemas struct {
	out  object
	docs map[string]string // "Type" and "Type.Field"
}

func (s *schemas) operation(path string, d routeDoc) object {
	op := object{"summary": d.summary, "responses": object{
		"200":     object{"description": "done", "content": s.content(d.out)},
		"default": object{"description": "refused", "content": s.content(api.Error{})},
	}}
	if d.in != nil {
		op["requestBody"] = object{"required": true, "content": s.content(d.in)}
	}
	var params []any
	if strings.Contains(path, "{id}") {
		params = append(params, object{"name": "id", "in": "path", "required": true, "schema": object{"type": "string"}, "description": "the disk's id in the configuration"})
	}
	if strings.HasSuffix(path, "/coordinator") {
		params = append(params, object{"name": "after", "in": "query", "schema": object{"type": "integer", "minimum": 0}, "description": "the version that the caller knows"})
	}
	if path == "/v1/network-config" && d.in == nil {
		params = append(params, object{"name": "after", "in": "query", "schema": object{"type": "integer", "minimum": 0}, "description": "the generation that the caller knows"})
	}
	if path == "/v1/quorum/proxy/status" {
		for _, name := range []string{"part_number", "serial_number"} {
			params = append(params, object{"name": name, "in": "query", "required": true, "schema": object{"type": "string"}, "description": "of the sled asked about"})
		}
	}
	if path == "/v1/status" {
		params = append(params, object{"name": "after", "in": "query", "schema": object{"type": "integer", "minimum": 0}, "description": "the revision that the caller knows; local API only"})
	}
	if params != nil {
		op["parameters"] = params
	}
	if d.role != "" {
		op["x-local"] = object{"role": d.role}
	}
	if d.access != "" {
		op["x-underlay"] = object{"access": d.access}
	}
	return op
}

func (s *schemas) content(v any) object {
	if _, ok := v.(octets); ok {
		return object{"application/octet-stream": object{"schema": object{}}}
	}
	return object{"application/json": object{"schema": s.of(reflect.TypeOf(v))}}
}

// of is the schema of a type: a reference for structs, which are described once.
func (s *schemas) of(t reflect.Type) object {
	switch t {
	case reflect.TypeFor[ident.Baseboard]():
		return object{"type": "string", "pattern": "^[!-9;-~]{1,51}:[!-9;-~]{1,51}$"}
	case reflect.TypeFor[ident.RackID]():
		return object{"type": "string", "format": "uuid"}
	case reflect.TypeFor[json.RawMessage]():
		return object{"type": []string{"object", "null"}}
	case reflect.TypeFor[api.State]():
		return object{"type": "string", "enum": []api.State{api.StateStarting, api.StateUnclaimed, api.StateClaimed, api.StateMember, api.StateExpunged, api.StateLostSeal}}
	case reflect.TypeFor[quorum.CommitStatus]():
		return object{"type": "string", "enum": []quorum.CommitStatus{quorum.Committed, quorum.Pending}}
	case reflect.TypeFor[[]byte]():
		return object{"type": []string{"string", "null"}, "contentEncoding": "base64"}
	}
	switch t.Kind() {
	case reflect.String:
		return object{"type": "string"}
	case reflect.Bool:
		return object{"type": "boolean"}
	case reflect.Float64:
		return object{"type": "number"}
	case reflect.Int, reflect.Int64, reflect.Int32:
		return object{"type": "integer"}
	case reflect.Uint64, reflect.Uint32, reflect.Uint8:
		return object{"type": "integer", "minimum": 0}
	case reflect.Interface:
		return object{}
	case reflect.Slice:
		return object{"type": []string{"array", "null"}, "items": s.of(t.Elem())}
	case reflect.Pointer:
		inner := s.of(t.Elem())
		if name, ok := inner["type"].(string); ok {
			inner["type"] = []string{name, "null"}
			return inner
		}
		return object{"anyOf": []any{inner, object{"type": "null"}}}
	case reflect.Struct:
		if t.NumField() == 0 {
			return object{"type": "object", "additionalProperties": false}
		}
		s.structure(t)
		return object{"$ref": "#/components/schemas/" + t.Name()}
	default:
		panic("no schema for " + t.String())
	}
}

func (s *schemas) structure(t reflect.Type) {
	if s.out[t.Name()] != nil {
		return
	}
	props, required := object{}, []string{}
	out := object{"type": "object", "description": s.doc(t.Name()), "additionalProperties": false, "properties": props}
	s.out[t.Name()] = out
	for f := range t.Fields() {
		name, opts, _ := strings.Cut(f.Tag.Get("json"), ",")
		if name == "" || name == "-" {
			panic(t.String() + "." + f.Name + " has no JSON name")
		}
		p := s.of(f.Type)
		if d := s.docs[t.Name()+"."+f.Name]; d != "" {
			p["description"] = d
		}
		props[name] = p
		if opts != "omitempty" {
			required = append(required, name)
		}
	}
	out["required"] = required
}

func (s *schemas) doc(name string) string {
	if d := s.docs[name]; d != "" {
		return d
	}
	return "UNDOCUMENTED"
}

// comments reads the comments of types and fields, so that the document says what the code says.
func comments(t *testing.T, dirs ...string) map[string]string {
	t.Helper()
	out := map[string]string{}
	for _, dir := range dirs {
		files, err := filepath.Glob(filepath.Join(dir, "*.go"))
		must(t, err)
		for _, name := range files {
			f, err := parser.ParseFile(token.NewFileSet(), name, nil, parser.ParseComments|parser.SkipObjectResolution)
			must(t, err)
			ast.Inspect(f, func(n ast.Node) bool {
				d, ok := n.(*ast.GenDecl)
				if !ok || d.Tok != token.TYPE {
					return true
				}
				ts := d.Specs[0].(*ast.TypeSpec)
				st, ok := ts.Type.(*ast.StructType)
				if !ok || !ts.Name.IsExported() || d.Doc == nil || strings.HasSuffix(name, "_test.go") {
					return false
				}
				out[ts.Name.Name] = oneLine(d.Doc.Text())
				for _, field := range st.Fields.List {
					for _, id := range field.Names {
						out[ts.Name.Name+"."+id.Name] = oneLine(field.Doc.Text() + " " + field.Comment.Text())
					}
				}
				return false
			})
		}
	}
	return out
}

func oneLine(s string) string { return strings.Join(strings.Fields(s), " ") }

// TestAnswersFitTheirSchemas sends every route a good request and holds the answer against the document.
func TestAnswersFitTheirSchemas(t *testing.T) {
	t.Parallel()
	var doc struct {
		Paths      map[string]map[string]any
		Components struct{ Schemas map[string]any }
	}
	b, err := os.ReadFile("openapi.json")
	must(t, err)
	must(t, json.Unmarshal(b, &doc))
	f := newFake()
	f.config = config()
	_, socket := serveLocal(t, f)
	for p, d := range routeDocs() {
		if _, raw := d.out.(octets); raw || d.role == "" {
			continue
		}
		method, path, body := sample(p)
		var have any
		must(t, json.Unmarshal(rawAnswer(t, socket, method, path, body), &have))
		_, schemaPath, _ := strings.Cut(p, " ")
		op := doc.Paths[schemaPath][strings.ToLower(method)].(object)
		schema := op["responses"].(object)["200"].(object)["content"].(object)["application/json"].(object)["schema"]
		if msg := fits(doc.Components.Schemas, schema.(object), have); msg != "" {
			t.Errorf("%s: %s", p, msg)
		}
	}
}

func rawAnswer(t *testing.T, socket, method, path, body string) []byte {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, "http://sled"+path, strings.NewReader(body))
	must(t, err)
	resp, err := unixTransport(socket).RoundTrip(req)
	must(t, err)
	defer func() { _ = resp.Body.Close() }()
	var b bytes.Buffer
	_, err = b.ReadFrom(resp.Body)
	must(t, err)
	return b.Bytes()
}

// fits checks what our schemas use: types, references, alternatives, required and unknown properties.
func fits(all map[string]any, schema object, v any) string {
	if ref, ok := schema["$ref"].(string); ok {
		return fits(all, all[strings.TrimPrefix(ref, "#/components/schemas/")].(object), v)
	}
	if alts, ok := schema["anyOf"].([]any); ok {
		if v == nil {
			return ""
		}
		return fits(all, alts[0].(object), v)
	}
	if !typeFits(schema["type"], v) {
		return "have " + reflect.TypeOf(v).String() + " for " + toText(schema["type"])
	}
	switch v := v.(type) {
	case []any:
		for _, e := range v {
			if items, ok := schema["items"].(object); ok {
				if msg := fits(all, items, e); msg != "" {
					return msg
				}
			}
		}
	case object:
		props, ok := schema["properties"].(object)
		if !ok {
			return ""
		}
		for _, r := range schema["required"].([]any) {
			if _, ok := v[r.(string)]; !ok {
				return "lacks " + r.(string)
			}
		}
		for k, e := range v {
			p, ok := props[k].(object)
			if !ok {
				return "unknown property " + k
			}
			if msg := fits(all, p, e); msg != "" {
				return k + ": " + msg
			}
		}
	}
	return ""
}

func toText(v any) string { b, _ := json.Marshal(v); return string(b) }

func typeFits(types, v any) bool {
	if types == nil {
		return true
	}
	name := "object"
	switch v.(type) {
	case nil:
		name = "null"
	case string:
		name = "string"
	case bool:
		name = "boolean"
	case []any:
		name = "array"
	case float64:
		return types == "integer" || types == "number"
	}
	return types == name || slices.Contains(asStrings(types), name)
}

func asStrings(v any) (out []string) {
	list, _ := v.([]any)
	for _, e := range list {
		out = append(out, e.(string))
	}
	return out
}
