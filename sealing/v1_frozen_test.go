// These tests hold bytes that released versions have written or that their sealed objects depend on. If one fails, revert
// the change: sleds in the field would lose their seals. A sled with its TPM lies in vault/ledger/testdata.

package sealing

import (
	"bytes"
	"encoding/hex"
	"testing"

	"github.com/google/go-tpm/tpm2"

	"github.com/sledvault/sledvault/tpm"
	"github.com/sledvault/sledvault/vault/secret"
)

func fixedSeed(t testing.TB) secret.Seed {
	t.Helper()
	s, err := secret.Take[secret.SeedKind](secret.Heap{}, bytes.Repeat([]byte{0x37}, seedLen))
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func fixedPCRs() map[int][32]byte { return map[int][32]byte{0: {1}, 7: {2}, 11: {3}} }

func want(t *testing.T, what string, have []byte, want string) {
	t.Helper()
	if got := hex.EncodeToString(have); got != want {
		t.Errorf("%s: have %s\nwant %s", what, got, want)
	}
}

func TestFrozenV1(t *testing.T) {
	t.Parallel()
	seed := fixedSeed(t)
	policy, err := publicKey(seed, labelPolicy)
	if err != nil {
		t.Fatal(err)
	}
	counter, err := publicKey(seed, labelCounter)
	if err != nil {
		t.Fatal(err)
	}
	auth, err := claimAuth(secret.Heap{}, seed)
	if err != nil {
		t.Fatal(err)
	}
	point := func(b []byte, err error) []byte {
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	want(t, "policy key", point(policy.Bytes()), frozenPolicyKey)
	want(t, "counter key", point(counter.Bytes()), frozenCounterKey)
	_ = auth.Use(func(b []byte) error { want(t, "claim auth", b, frozenClaimAuth); return nil })
	c, err := tpm.CounterAt(DefaultCounterIndex, counter)
	if err != nil {
		t.Fatal(err)
	}
	want(t, "counter name", c.Name, frozenCounterName)
	ref := policyRef(testRack, testID)
	want(t, "policy ref", ref[:], frozenRef)
	name := point(policyKeyName(policy))
	want(t, "seal policy", sealPolicy(name, ref), frozenSealPolicy)
	approved := point(approvedPolicy(fixedPCRs(), c.Name, 0x1122334455667788))
	want(t, "approved policy", approved, frozenApproved)

	blob := point((&BlobInfo{Public: []byte("public"), Private: []byte("private"), PolicyKey: policy, CounterKey: counter, CounterIndex: 0x01805c01}).encode())
	want(t, "blob", blob, "7376626c6f62000100067075626c6963000770726976617465"+frozenPolicyKey+frozenCounterKey+"01805c01")
	a := ApprovalInfo{Sequence: 9, Staged: true, PCRs: map[int][32]byte{0: {1}, 7: {2}}, R: [32]byte{0xaa}, S: [32]byte{0xbb}}
	zeros := func(n int) string { return hex.EncodeToString(make([]byte, n)) }
	want(t, "approval", a.encode(), "737661707072000101000000000000000902"+"0001"+zeros(31)+"0702"+zeros(31)+"aa"+zeros(31)+"bb"+zeros(31))
	claim := Claim{Version: 1, Rack: testRack, KeyDigest: [32]byte{1}, SetGeneration: 7, SetDigest: [32]byte{2}}
	want(t, "claim", claim.encode(), "01"+"1122"+zeros(13)+"ff"+"01"+zeros(31)+"0000000000000007"+"02"+zeros(31))
	if back, err := decodeClaim(claim.encode()); err != nil || *back != claim {
		t.Errorf("claim reads back as %+v, %v", back, err)
	}
}

// TestPolicyByLibrary: our digests against go-tpm's calculator.
func TestPolicyByLibrary(t *testing.T) {
	t.Parallel()
	calc := func(cmds ...tpm2.PolicyCommand) []byte {
		p, err := tpm2.NewPolicyCalculator(tpm2.TPMAlgSHA256)
		if err != nil {
			t.Fatal(err)
		}
		for _, c := range cmds {
			if err := c.Update(p); err != nil {
				t.Fatal(err)
			}
		}
		return p.Hash().Digest
	}
	seed := fixedSeed(t)
	key, err := publicKey(seed, labelPolicy)
	if err != nil {
		t.Fatal(err)
	}
	name, err := policyKeyName(key)
	if err != nil {
		t.Fatal(err)
	}
	ref := policyRef(testRack, testID)
	byLibrary := calc(tpm2.PolicyAuthorize{KeySign: tpm2.TPM2BName{Buffer: name}, PolicyRef: tpm2.TPM2BDigest{Buffer: ref[:]}}, tpm2.PolicyAuthValue{})
	want(t, "seal policy", sealPolicy(name, ref), hex.EncodeToString(byLibrary))

	pcrs := fixedPCRs()
	var values []byte
	for _, n := range []int{0, 7, 11} {
		v := pcrs[n]
		values = append(values, v[:]...)
	}
	sel, err := tpm.Selection([]int{0, 7, 11})
	if err != nil {
		t.Fatal(err)
	}
	index := tpm2.NamedHandle{Handle: 0x01805c01, Name: tpm2.TPM2BName{Buffer: append([]byte{0, 0xb}, make([]byte, 32)...)}}
	byLibrary = calc(
		tpm2.PolicyPCR{PcrDigest: tpm2.TPM2BDigest{Buffer: hash(values)}, Pcrs: sel},
		tpm2.PolicyNV{NVIndex: index, OperandB: tpm2.TPM2BOperand{Buffer: operand(77)}, Operation: tpm2.TPMEOUnsignedLE},
	)
	approved, err := approvedPolicy(pcrs, index.Name.Buffer, 77)
	if err != nil {
		t.Fatal(err)
	}
	want(t, "approved policy", approved, hex.EncodeToString(byLibrary))
}

const (
	frozenPolicyKey   = "04c1dffd3a4712c348279ef8962dbc92e537c1f5344e59dd9021c2ec2119d181cafbcb9850ac2b8d00adf95288ad84c90a7a15246ff9424f4199fd4842c12974ea"
	frozenCounterKey  = "042743a219cd632a2ef69ca34b70321f3b5a7d3494f32994a5a4825eaeaf821cc19c8255c2ccf5813b63329d601b9dfd1059f0b7458d279077c86276ae98c2fd5b"
	frozenClaimAuth   = "efafc0964c4e43b27c86ddc6ec1eeae653c61a162ef64323d9bfc0b9c341978c"
	frozenCounterName = "000b0de6899114d22d022cf4cb69d084edcf2de682815033219d80c501348e94799b"
	frozenRef         = "45bedc4dcd60cdab6510cc6fca6b84987d044924a5ae18837689a31132ed9df1"
	frozenSealPolicy  = "5e06854396cb08125acf779494ea7eb4b653358946eb8fdc89fbefd30312830b"
	frozenApproved    = "f8848bcd7a187e4c6fdf0e8518d6f9db6f790884deec03d444ddf64a8849bba9"
)
