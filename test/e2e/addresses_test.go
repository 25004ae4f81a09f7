package e2e

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"sync"
	"testing"
)

// Addresses that tests give to processes come from blocks of ports, each of which one run of the tests has for itself. They
// lie below the range of which the kernel takes ports for others, and beside that of the control planes. A port of the
// kernel's choice would be anybody's between the look at it and the moment at which the process binds it, and again
// whenever the process is down.
const (
	firstBlock = 10000
	blocks     = 100
	blockSize  = 100
)

// block is what this run has: its first port is listened on for as long as the run lasts, which keeps others from it.
type block struct {
	claim net.Listener
	first int

	mu   sync.Mutex
	next int // guarded by mu
}

var claimed = sync.OnceValues(claimBlock)

func claimBlock() (*block, error) {
	for _, n := range rand.Perm(blocks) {
		first := firstBlock + n*blockSize
		if l, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", first)); err == nil {
			return &block{claim: l, first: first}, nil
		}
	}
	return nil, errors.New("all blocks of ports are taken")
}

// free returns an address of the block that nobody listens on, and that has not been given out for the longest time.
func (b *block) free() (string, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for range blockSize - 1 {
		b.next = b.next%(blockSize-1) + 1
		address := fmt.Sprintf("127.0.0.1:%d", b.first+b.next)
		if l, err := net.Listen("tcp", address); err == nil {
			return address, l.Close()
		}
	}
	return "", fmt.Errorf("nothing is free from port %d on", b.first)
}

// freeAddress returns a loopback address for a process to listen on, which nobody else is given.
func freeAddress(t testing.TB) string {
	t.Helper()
	b, err := claimed()
	must(t, err)
	address, err := b.free()
	must(t, err)
	return address
}

// Two runs side by side are never given the same address, and one run not the same twice in a row.
func TestAddresses(t *testing.T) {
	given := map[string]bool{}
	for range 2 {
		b, err := claimBlock()
		must(t, err)
		t.Cleanup(func() { _ = b.claim.Close() })
		for range blockSize / 2 {
			address, err := b.free()
			must(t, err)
			if given[address] {
				t.Errorf("%s is given twice", address)
			}
			given[address] = true
		}
		taken, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", b.first+b.next+1))
		must(t, err)
		t.Cleanup(func() { _ = taken.Close() })
		if address, err := b.free(); err != nil || address == taken.Addr().String() {
			t.Errorf("got %s, %v; somebody listens there", address, err)
		}
	}
}
