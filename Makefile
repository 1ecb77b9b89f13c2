# Targets for users: demo, test. For contributors: install, check, test-unit, test-daemon, test-compat, gen, bench, clean.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
export BUILDKIT_PY_PREFIX ?= $(CURDIR)/.cache/prefix

CHECK_PYTHON = $(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	|| { echo "error: Python 3.11 or newer is needed; name one with: make PYTHON=python3.12 ..."; exit 1; }

.PHONY: help install servers demo check test test-unit test-daemon test-compat test-slow gen bench clean

help:
	@grep -E '^# ' Makefile | sed 's/^# //'

$(VENV)/.installed: pyproject.toml
	@$(CHECK_PYTHON)
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) \
		|| { echo "error: cannot make a virtual environment; on Debian: apt-get install python3-venv"; exit 1; }
	$(BIN)/python -m pip install -q --disable-pip-version-check -e '.[test,check]'
	@touch $@

install: $(VENV)/.installed

# Real servers from the distribution's packages, cached in .cache/; where that cannot be, a message says what to do.
servers: install
	@$(BIN)/python scripts/fetch_servers.py all

# What only root can do is said before anything is downloaded.
demo:
	@$(CHECK_PYTHON)
	@$(PYTHON) scripts/fetch_servers.py --check daemon emulators
	@$(MAKE) --no-print-directory install
	@$(BIN)/python scripts/fetch_servers.py daemon registry emulators images
	@$(BIN)/python scripts/demo.py

check: install
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/basedpyright
	$(BIN)/lint-imports
	$(BIN)/python scripts/gen_protos.py --check

# All tests. Without servers those that need one are skipped, unless BUILDKIT_PY_REQUIRE_DAEMON=1.
test: install
	@$(BIN)/python scripts/fetch_servers.py all || test -z "$$BUILDKIT_PY_REQUIRE_DAEMON"
	$(BIN)/python -m pytest

test-unit: install
	$(BIN)/python -m pytest -m 'not daemon'

test-daemon: servers
	BUILDKIT_PY_REQUIRE_DAEMON=1 $(BIN)/python -m pytest -m daemon

# The same tests on an older engine, Debian 13's, fetched beside the other one.
test-compat: servers
	@$(BIN)/python scripts/fetch_servers.py compat
	env -u BUILDKIT_HOST BUILDKIT_PY_REQUIRE_DAEMON=1 BUILDKIT_PY_TEST_ENGINE=$(BUILDKIT_PY_PREFIX)-compat \
		$(BIN)/python -m pytest -m daemon

# The few tests that take minutes and gigabytes.
test-slow: servers
	BUILDKIT_PY_SLOW=1 BUILDKIT_PY_REQUIRE_DAEMON=1 $(BIN)/python -m pytest -m slow

gen: install
	$(BIN)/python scripts/gen_protos.py

bench: servers
	$(BIN)/python -m tests.benchmarks

clean:
	rm -rf .cache .venv build dist *.egg-info
