// An echo server in Go: the net package, a goroutine for each connection with a buffer of 16 KiB.
package main

import (
	"errors"
	"flag"
	"fmt"
	"math"
	"net"
	"os"
	"runtime"
	"syscall"
	"time"
	"unsafe"
)

const bufferBytes = 16 * 1024

func main() {
	listen := flag.String("listen", "127.0.0.1:0", "address to listen on; with port 0 the kernel chooses")
	cpu := flag.Int("cpu", -1, "run on this CPU only")
	closeAfter := flag.Uint64("close-after", math.MaxUint64, "close each connection once this many bytes have been echoed on it")
	flag.Parse()
	if err := run(*listen, *cpu, *closeAfter); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(3)
	}
}

func run(listen string, cpu int, closeAfter uint64) error {
	if cpu >= 0 {
		if err := pin(cpu); err != nil {
			return fmt.Errorf("cannot run on CPU %d: %w", cpu, err)
		}
	}
	// Go asks for net.core.somaxconn as backlog, and sets TCP_NODELAY on what it accepts.
	listener, err := net.Listen("tcp", listen)
	if err != nil {
		return err
	}
	fmt.Println("listening", listener.Addr())
	for {
		connection, err := listener.Accept()
		if err != nil {
			if errors.Is(err, syscall.ECONNABORTED) {
				continue
			}
			if errors.Is(err, syscall.EMFILE) || errors.Is(err, syscall.ENFILE) {
				// Go offers no way to learn of a free descriptor.
				time.Sleep(10 * time.Millisecond)
				continue
			}
			return err
		}
		go echo(connection, closeAfter)
	}
}

// echo returns at the end of the stream, at an error, or after closeAfter bytes.
func echo(connection net.Conn, closeAfter uint64) {
	defer connection.Close()
	buffer := make([]byte, bufferBytes)
	var echoed uint64
	for echoed < closeAfter {
		count, err := connection.Read(buffer)
		if count > 0 {
			if _, err := connection.Write(buffer[:count]); err != nil {
				return
			}
			echoed += uint64(count)
		}
		if err != nil {
			return
		}
	}
}

// pin restricts the process to one CPU. The runtime has started threads already, and has counted
// the CPUs: the program is executed anew, so that all its threads begin on that CPU.
func pin(cpu int) error {
	const mark = "PEER_GO_PINNED"
	var set [1024 / 64]uint64
	if cpu >= 1024 {
		return syscall.EINVAL
	}
	if os.Getenv(mark) != "" {
		return nil
	}
	set[cpu/64] |= 1 << (cpu % 64)
	// The thread that calls execve is the one that remains, with its CPUs.
	runtime.LockOSThread()
	size, address := unsafe.Sizeof(set), uintptr(unsafe.Pointer(&set))
	if _, _, errno := syscall.RawSyscall(syscall.SYS_SCHED_SETAFFINITY, 0, size, address); errno != 0 {
		return errno
	}
	return syscall.Exec("/proc/self/exe", os.Args, append(os.Environ(), mark+"=1"))
}
