// What Go programs do with a guest's stdio, for comparison with the pump.
//
//	pump MODE BUFFER COUNT BASE DIR
//
// Guest sockets are fds BASE..BASE+COUNT-1; FIFOs are DIR/out.N and, with MODE echo, DIR/in.N; logs
// are DIR/log.N. Modes:
//
//	fifo    io.CopyBuffer through containerd/fifo: containerd's runc shim (4096), kata's (32768)
//	splice  io.Copy between plain files, which Go's runtime turns into splice(2)
//	log     one read, written to the log and to the FIFO: our own log with one attach client
//	echo    fifo, both ways
package main

import (
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"strconv"
	"syscall"

	"github.com/containerd/fifo"
)

func check(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func number(text string) int {
	value, err := strconv.Atoi(text)
	check(err)
	return value
}

func openFifo(path string, flags int) io.ReadWriteCloser {
	file, err := fifo.OpenFifo(context.Background(), path, flags, 0)
	check(err)
	return file
}

func openPlain(path string, flags int) *os.File {
	file, err := os.OpenFile(path, flags|syscall.O_NONBLOCK, 0o600)
	check(err)
	return file
}

func main() {
	mode, buffer := os.Args[1], number(os.Args[2])
	count, base, dir := number(os.Args[3]), number(os.Args[4]), os.Args[5]
	for i := 0; i < count; i++ {
		file := os.NewFile(uintptr(base+i), "guest")
		guest, err := net.FileConn(file)
		check(err)
		file.Close()
		out := fmt.Sprintf("%s/out.%d", dir, i)
		switch mode {
		case "fifo":
			go io.CopyBuffer(openFifo(out, syscall.O_WRONLY), guest, make([]byte, buffer))
		case "splice":
			go io.Copy(openPlain(out, os.O_WRONLY), guest)
		case "log":
			log := openPlain(fmt.Sprintf("%s/log.%d", dir, i), os.O_RDWR|os.O_CREATE|os.O_APPEND)
			both := io.MultiWriter(log, openPlain(out, os.O_WRONLY))
			go io.CopyBuffer(both, struct{ io.Reader }{guest}, make([]byte, buffer))
		case "echo":
			in := openFifo(fmt.Sprintf("%s/in.%d", dir, i), syscall.O_RDONLY|syscall.O_NONBLOCK)
			go io.CopyBuffer(openFifo(out, syscall.O_WRONLY), guest, make([]byte, buffer))
			go io.CopyBuffer(guest, in, make([]byte, buffer))
		default:
			check(fmt.Errorf("unknown mode %q", mode))
		}
	}
	fmt.Println("ready")
	select {}
}
