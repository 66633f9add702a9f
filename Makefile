# The one door. `make help` lists what it opens.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
PYTHON ?= $(shell command -v /usr/bin/python3 || command -v python3)
VENV := .venv
PY := $(VENV)/bin/python

.PHONY: ext
ext: ## build the Cython rooms in place (one builder at a time)
	@flock .venv/.build-lock $(PY) setup.py -q build_ext --inplace
