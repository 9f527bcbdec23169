# SPDX-License-Identifier: Apache-2.0
#
#   make demo      install what is missing, then tell the whole story on a real guest (about 90 s)
#   make test      install what is missing, then lint and the whole test suite, in three processes
#   make lint      format, style, types, order of imports
#   make openapi   docs/openapi.json, from the declared orders
#   make bench     the figures of docs/benchmarks.md
#   make mutants   each rule taken away by itself: its tests must notice (some minutes)
#   make matrix    the demo and the tests of QEMU and libvirt in a root of Debian 13
#   make simulate  20,000 random lives of the whole chain, 10,000 with a mirror (half an hour)
#   make clean     back to a fresh checkout
#
# PYTEST_ARGS is passed on: make test PYTEST_ARGS='tests/journal -x'

VENV ?= .venv
PYTHON := $(VENV)/bin/python
INSTALL := VENV='$(abspath $(VENV))' deploy/install-dependencies.sh
PYTEST_ARGS ?=

.PHONY: demo test lint check openapi mutants matrix simulate bench clean install-demo install-test

demo: install-demo
	$(VENV)/bin/replicator demo

# Lint first: it fails in seconds. The closing line of pytest stays the last one.
test: install-test
	@$(MAKE) --no-print-directory check
	$(PYTHON) -m pytest -n 3 --dist loadscope --durations=15 $(PYTEST_ARGS)

lint: install-test
	@$(MAKE) --no-print-directory check

check:
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/ruff check .
	$(VENV)/bin/mypy
	$(VENV)/bin/lint-imports

openapi: install-test
	$(PYTHON) -c 'from replicator.control.openapi import text; print(text(), end="")' > docs/openapi.json

simulate: install-test
	REPLICATOR_LIVES=20000 $(PYTHON) -m pytest -n 2 --timeout=0 \
		tests/world/test_chain.py tests/world/test_mirrored_chain.py

mutants: install-test
	$(PYTHON) -m tests.mutants.run

matrix:
	tests/matrix.sh $(SUITES)

bench: install-test
	$(PYTHON) -m tests.bench

install-demo:
	@$(INSTALL) demo

install-test:
	@$(INSTALL) test

clean:
	@if [ -L '$(VENV)' ]; then rm -rf -- "$$(realpath '$(VENV)')"; fi
	rm -rf '$(VENV)' build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -prune -exec rm -rf {} +
