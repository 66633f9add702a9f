// Package conformance runs containerd's shimtest against our shim. test_shimtest.py builds it and
// says what it finds: HYPERCORE_SHIM is the shim's binary.
package conformance

import (
	"os"
	"strconv"
	"testing"

	"github.com/containerd/shimtest"
	"github.com/containerd/typeurl/v2"
	"github.com/opencontainers/runtime-spec/specs-go"
)

// containerd registers this type when it starts; the suites send it in Exec.
func init() {
	version := strconv.Itoa(specs.VersionMajor)
	typeurl.Register(&specs.Process{},
		"types.containerd.io", "opencontainers/runtime-spec", version, "Process")
}

func config(tb testing.TB) shimtest.Config {
	shim := os.Getenv("HYPERCORE_SHIM")
	if shim == "" {
		tb.Fatal("HYPERCORE_SHIM does not name the shim's binary")
	}
	// A shim for runc takes a directory that is mounted; only benchmarks run one, as a peer.
	images := os.Getenv("HYPERCORE_SHIM_FORMAT_MOUNTS") != "false"
	_, measuring := tb.(*testing.B)
	return shimtest.Config{ShimBinary: shim, FormatMounts: images, Debug: !measuring}
}

func TestRun(t *testing.T)    { shimtest.NewRunSuite(config(t)).Run(t) }
func TestExec(t *testing.T)   { shimtest.NewExecSuite(config(t)).Run(t) }
func TestOOM(t *testing.T)    { shimtest.NewOOMSuite(config(t)).Run(t) }
func TestLayers(t *testing.T) { shimtest.NewLayersSuite(config(t)).Run(t) }
func TestUDS(t *testing.T)    { shimtest.NewUDSSuite(config(t)).Run(t) }

func TestTransfer(t *testing.T) { shimtest.NewTransferSuite(config(t)).Run(t) }

func BenchmarkShim(b *testing.B) {
	shimtest.NewRunSuite(config(b)).Bench(b)
	shimtest.NewExecSuite(config(b)).Bench(b)
}
