# Every target does its own set-up; see scripts/setup.
#
#   PYTHON=python3.13 make test     make .venv with another interpreter (after `make clean`)
#   make test ARGS='-k udp'         ARGS goes to the command behind the target

.DEFAULT_GOAL := help
.PHONY: help demo report test test-integrations test-kernels test-stdlib lint format bench docs pictures lock clean
.DELETE_ON_ERROR:

PYTHON ?= python3
export PYTHON

STAMPS := .venv/.stamps
RUN := .venv/bin/python
# Directories too: their time changes when a file is removed.
SOURCES := pyproject.toml README.md LICENSE $(shell find src -name __pycache__ -prune -o -print)

help:  ## print this list
	@awk -F ':.*## +' '/^[a-z-]+:.*## / { printf "make %-12s %s\n", $$1, $$2 }' Makefile

demo: $(STAMPS)/demo $(STAMPS)/installed  ## open every connection one address can have, and show what stops the usual ways
	@$(RUN) -m connectx demo $(ARGS)

report: $(STAMPS)/demo $(STAMPS)/installed  ## measure how this kernel gives out source ports, and draw it on one HTML page
	@$(RUN) -m connectx lab report $(ARGS)

test: $(STAMPS)/test $(STAMPS)/installed  ## run the whole test suite against the built wheel
	$(RUN) -m pytest --numprocesses 2 --dist loadfile $(ARGS)

test-integrations: $(STAMPS)/test $(STAMPS)/installed  ## run every check of every integration, with the newest and the oldest release of its library
	scripts/test-integrations $(ARGS)

test-kernels: $(STAMPS)/test $(STAMPS)/installed  ## run the quick tests under another kernel: KERNEL=directory with an unpacked linux-image package
	scripts/test-kernel $(ARGS)

test-stdlib: $(STAMPS)/demo $(STAMPS)/installed  ## run CPython's own tests of network clients on connectx, with each Python that is installed
	scripts/test-stdlib $(ARGS)

lint: $(STAMPS)/lint $(STAMPS)/installed  ## check style, types and the layers
	$(RUN) -m ruff check
	$(RUN) -m ruff format --check
	$(RUN) -m mypy
	$(RUN) -c 'from importlinter.cli import lint_imports_command; lint_imports_command()' --no-logo

format: $(STAMPS)/lint  ## rewrite the sources in the project's style
	$(RUN) -m ruff check --fix
	$(RUN) -m ruff format

bench: $(STAMPS)/bench $(STAMPS)/installed  ## measure speed, system calls and memory beside the targets
	$(RUN) -m bench $(ARGS)

docs: $(STAMPS)/docs $(STAMPS)/installed  ## build the documentation into docs/_build/html
	$(RUN) -m sphinx --fail-on-warning --keep-going --nitpicky --builder html $(ARGS) docs docs/_build/html

pictures: $(STAMPS)/test $(STAMPS)/installed  ## draw the documentation's pictures again, and capture the output of every command that it shows
	$(RUN) -m docs.figure
	$(RUN) -m docs.captures

lock: $(STAMPS)/lock  ## choose new versions of all dependencies (ARGS=--upgrade) and write requirements/*.lock
	scripts/lock $(ARGS)

clean:  ## remove everything that was built, .venv too
	rm -rf .venv build dist docs/_build .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -prune -exec rm -rf {} +

$(STAMPS)/%: requirements/%.lock scripts/setup
	@scripts/setup $*
	@mkdir -p $(STAMPS) && touch $@

# Dated before the build, so that a file saved meanwhile counts as newer.
$(STAMPS)/installed: $(SOURCES) scripts/install | $(STAMPS)/demo
	@touch $@.new
	@scripts/install
	@mv $@.new $@
