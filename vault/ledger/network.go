package ledger

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"slices"

	"github.com/sledvault/sledvault/vault/reason"
	"github.com/sledvault/sledvault/vault/wire"
)

// Network is the rack's network configuration as this sled knows it (ledger.md §7.1): the newest generation counts, and the
// blob is opaque here.
type Network struct {
	Generation uint64 // 0: none
	Blob       []byte // at most [wire.MaxNetworkBlob] bytes
}

// Digest is the SHA-256 of the blob.
func (n Network) Digest() [32]byte { return sha256.Sum256(n.Blob) }

const networkVersion = 1

// networkFile is the kind of the network configuration's file.
func networkFile() uncounted {
	return uncounted{NetworkFile, "svnetcfg", networkVersion, "sledvault/network/v1", wire.MaxNetworkBlob + 512, "network", CodeNetwork}
}

// Network returns the network configuration as last saved or loaded. Nobody may change the blob.
func (l *Ledger) Network() Network {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.network
}

// SaveNetwork stores a newer network configuration on both media, without a counter step. One medium is enough; when
// neither takes it that is an error, and it must not be passed on. The ledger goes on. Errors: [CodeNetwork].
func (l *Ledger) SaveNetwork(ctx context.Context, n Network) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case l.stopped:
		return errStopped
	case n.Generation <= l.network.Generation:
		return reason.New(CodeNetwork, hintFolder, "ledger: network configuration: have generation %d, want more than %d", n.Generation, l.network.Generation)
	case len(n.Blob) > wire.MaxNetworkBlob:
		return reason.New(CodeNetwork, hintFolder, "ledger: network configuration: have %d bytes, want at most %d", len(n.Blob), wire.MaxNetworkBlob)
	}
	for i := range l.folders {
		l.cfg.count(CodeDegraded, i, l.reach(i))
	}
	plain := append(binary.BigEndian.AppendUint64(make([]byte, 0, 8+len(n.Blob)), n.Generation), n.Blob...)
	if err := l.saveUncounted(ctx, networkFile(), plain, &l.netNumber); err != nil {
		return err
	}
	l.network = Network{n.Generation, slices.Clone(n.Blob)}
	return nil
}

// parseNetwork reads the plaintext of the file.
func parseNetwork(plain []byte) (Network, error) {
	if len(plain) < 8 {
		return Network{}, formatError("network configuration of %d bytes, want at least 8", len(plain))
	}
	n := Network{binary.BigEndian.Uint64(plain), plain[8:]}
	if n.Generation == 0 || len(n.Blob) > wire.MaxNetworkBlob {
		return Network{}, formatError("network configuration of generation %d and %d bytes", n.Generation, len(n.Blob))
	}
	return n, nil
}

// loadNetwork takes the newer of both files and writes the other anew: unlike the observations, nothing else would for a
// long time. Damage is counted, not fatal: the peers have the configuration, too.
func (l *Ledger) loadNetwork() error {
	best, differ := l.loadUncounted(networkFile(), &l.netNumber, func(plain []byte) error {
		n, err := parseNetwork(plain)
		if err == nil {
			l.network = n
		}
		return err
	})
	for _, i := range differ {
		err := replace(l.folders[i], NetworkFile, best, func(step string) error { return l.cfg.hook("start/network/" + copyName(i) + "/" + step) })
		if aborted(err) {
			return err
		}
		l.cfg.count(CodeDegraded, i, err)
	}
	return l.cfg.step("start/network")
}
