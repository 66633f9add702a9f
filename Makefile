# The one door. `make help` lists what it opens.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

VENV := .venv
PY := $(VENV)/bin/python
# What touches /var/lib/hypercore, TAPs and cgroups needs root.
AS_ROOT := $(if $(filter-out 0,$(shell id -u)),sudo,)
# Python is not built with the sanitizers, so their runtime must come before it.
SANITIZER := $(if $(HYPERCORE_SANITIZE),LD_PRELOAD=$(shell gcc -print-file-name=libasan.so) ASAN_OPTIONS=detect_leaks=0)
# A promised tier fails where it would skip (tests/conftest.py).
pytest = env HYPERCORE_TIERS="$(1)" $(SANITIZER) $(PY) -m pytest $(PYTEST_ARGS) $(addprefix tests/,$(1))
# Where KVM runs no guests, tests/lab brings a host whose does.
test_kvm = $(PY) -m tests.lab.l1 env HYPERCORE_TIERS=kvm $(VENV)/bin/python -m pytest -v -s --durations=0 --durations-min=1 $(PYTEST_ARGS) tests/kvm

NATIVE_SOURCES := setup.py $(wildcard hypercore/*.pyx hypercore/*.pxd hypercore/wire/*.pyx hypercore/wire/*.pxd hypercore/*.h hypercore/shim/*.c)
NATIVE_STAMP := $(VENV)/.built$(if $(HYPERCORE_DEBUG),-debug)$(if $(HYPERCORE_SANITIZE),-$(HYPERCORE_SANITIZE))

.PHONY: help
help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-17s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: venv
venv:
	@scripts/setup.sh

.PHONY: build
build: venv $(NATIVE_STAMP) launcher ## virtual environment, Cython rooms, launcher

LAUNCHER_NAMES := containerd-shim-hypercore-v1 containerd-shim-hypercore-example
VERSION := $(shell sed -n 's/^version = "\(.*\)"/\1/p' pyproject.toml)

.PHONY: launcher
launcher: bin/hypercore ## the static binary behind bin/hypercore and the shims

# Its time of change is the build id of the shim server: newer code gets a server of its own.
bin/hypercore: hypercore/shim/launcher.c $(wildcard hypercore/shim/*.h) $(shell find hypercore -name '*.py' -o -name '*.so')
	@mkdir -p bin
	@$(CC) -static -Os -std=gnu11 -Wall -Wextra -DHYPERCORE_VERSION='"$(VERSION)"' -o $@.new $<
	@mv $@.new $@
	@for name in $(LAUNCHER_NAMES); do ln -sf hypercore bin/$$name; done

.PHONY: ext
ext: $(NATIVE_STAMP) ## only the Cython rooms (one builder at a time)

$(NATIVE_STAMP): $(NATIVE_SOURCES) | $(PY)
	@$(if $(filter-out $@,$(wildcard $(VENV)/.built*)),$(MAKE) -s clean-ext,:)
	@echo "build: Cython rooms"
	@flock $(VENV)/.build-lock $(PY) setup.py -q build_ext --inplace
	@touch $@

$(PY):
	@scripts/setup.sh

.PHONY: setup
setup: build ## what it runs on: containerd, guest assets, demo image (hypercore setup)
	@$(AS_ROOT) bin/hypercore setup

.PHONY: run
run: setup ## the main job: a container of the demo image in a microVM, removed afterwards
	@$(AS_ROOT) bin/hypercore containerd start
	$(AS_ROOT) bin/hypercore spawn --rm --hac examples/hello/hac.toml

.PHONY: test
test: setup ## all tiers; a tier that cannot run here fails
	$(AS_ROOT) $(call pytest,unit integration functional)

.PHONY: test-unit
test-unit: build ## no root, under ten seconds
	$(call pytest,unit)

.PHONY: test-integration
test-integration: setup ## real taps, sockets, loops; root
	$(AS_ROOT) $(call pytest,integration)

.PHONY: test-functional
test-functional: setup ## real guests under a real containerd; root
	$(AS_ROOT) $(call pytest,functional)

.PHONY: conformance
conformance: setup ## outside judges: containerd's shimtest, containerd 2.1 and 2.4, Go's ttrpc; gets Go if there is none
	$(AS_ROOT) env HYPERCORE_TIERS=conformance $(PY) -m pytest $(PYTEST_ARGS) tests/conformance/test_shimtest.py tests/conformance/test_containerd2.py tests/conformance/test_ttrpc_peer.py

.PHONY: test-kvm
test-kvm: setup ## every provider on real KVM; where there is none, in a host that QEMU emulates
	$(AS_ROOT) $(test_kvm)

.PHONY: test-builds
test-builds: build ## the Cython rooms with asserts and with sanitizers, in copies of the tree; root
	$(AS_ROOT) scripts/test_builds.sh

FUZZ_ROOMS := build/asan

.PHONY: fuzz
fuzz: build ## damaged input for all parsers, under AddressSanitizer; SEED=n replays, CASES=n
	@flock $(VENV)/.build-lock env HYPERCORE_SANITIZE=address $(PY) setup.py -q build_ext --build-lib $(FUZZ_ROOMS) --build-temp $(FUZZ_ROOMS)/objects
	env LD_PRELOAD=$(shell gcc -print-file-name=libasan.so) ASAN_OPTIONS=detect_leaks=0:quarantine_size_mb=16 \
	  $(PY) -m tests.fuzz --ext $(FUZZ_ROOMS) --cases $(or $(CASES),1000000) $(if $(SEED),--seed $(SEED))

.PHONY: soak
soak: setup fuzz ## the long counts; SEED=n replays a run, SPAWNS=n and DENSITY=n change its length
	$(AS_ROOT) $(PY) -m tests.soak_memory
	$(AS_ROOT) $(PY) -m tests.soak_density $(if $(DENSITY),--count $(DENSITY))
	$(AS_ROOT) $(PY) -m tests.soak $(if $(SEED),--seed $(SEED)) $(if $(SPAWNS),--spawns $(SPAWNS))

.PHONY: bench
bench: build ## benchmarks; root; ONLY=name runs one
	$(AS_ROOT) $(PY) -m benchmarks $(ONLY)

.PHONY: lint
lint: build ## ruff, mypy --strict, the rooms' stubs, cython-lint, generated messages
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	PATH=$(CURDIR)/$(VENV)/bin:$$PATH cython-lint $(filter %.pyx %.pxd,$(NATIVE_SOURCES))
	$(PY) -m mypy.stubtest --allowlist scripts/stubtest-allowlist.txt $(subst /,.,$(patsubst %.pyx,%,$(filter %.pyx,$(NATIVE_SOURCES)))) hypercore.wire.codec hypercore.wire.tar
	$(PY) scripts/protogen.py --check

.PHONY: format
format: build ## let ruff rewrite what it can
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

.PHONY: wheel
wheel: build ## source archive and wheel into dist/, with the agent if it was compiled before
	rm -rf dist
	$(PY) -m build
	$(PY) scripts/check_wheel.py $(if $(wildcard hypercore/guest/prebuilt/*/init),,--no-agent) dist/*.whl

.PHONY: clean-ext
clean-ext:
	rm -rf build $(VENV)/.built*
	rm -f hypercore/*.so hypercore/wire/*.so $(patsubst %.pyx,%.c,$(filter %.pyx,$(NATIVE_SOURCES)))

.PHONY: clean
clean: clean-ext ## what was built here, not /var/lib/hypercore (hypercore cleanup --all)
	rm -rf dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .benchmarks $(VENV)
	rm -f bin/hypercore bin/containerd-shim-hypercore-*
	find hypercore tests agent benchmarks scripts -name __pycache__ -prune -exec rm -rf {} +
