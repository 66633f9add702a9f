module hypercore/benchmarks/pump

go 1.22

require github.com/containerd/fifo v1.1.0

require golang.org/x/sys v0.5.0 // indirect
