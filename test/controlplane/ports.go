package controlplane

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
)

// Ports are taken from below the range that Linux, macOS and BSD use for outgoing
// connections and for listeners on port 0. Between our look and the bind of the
// component, the kernel gives such a port to nobody.
const (
	firstPort = 20000
	lastPort  = 29999
)

// freePorts returns n different loopback ports that nobody listens on. Another process
// that picks in the same way can still be faster, so callers try again with new ones.
func freePorts(n int) ([]int, error) {
	taken := map[int]bool{}
	var ports []int
	for range 1000 {
		port := firstPort + rand.IntN(lastPort-firstPort+1)
		if taken[port] {
			continue
		}
		taken[port] = true
		l, err := net.Listen("tcp", loopback(port))
		if err != nil {
			continue
		}
		l.Close()
		if ports = append(ports, port); len(ports) == n {
			return ports, nil
		}
	}
	return nil, errors.New("no free port on 127.0.0.1")
}

func loopback(port int) string { return fmt.Sprintf("127.0.0.1:%d", port) }
