# Every target sets up what it needs; `make help` lists them. Parts from outside are kept in ~/.cache/vdev (VDEV_CACHE).

PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python

.DEFAULT_GOAL := help
.PHONY: help setup parts demo shell test soak check conformance bench fuzz mutate doctor clean

help: ## list the targets
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/  make \1\t\2/p' Makefile | expand -t 16

# Always run: it keeps a stamp in .venv, and unlike make it notices an interpreter that is gone (0.1 s).
setup: ## make .venv with the pinned dependencies
	@$(PYTHON) scripts/bootstrap.py

parts: setup ## fetch QEMU, the default guest kernel and the guest's userland into the cache
	@$(RUN) -m vdev.parts fetch

demo: setup ## boot a stock guest and watch the IOMMU work (TRACE=FILE keeps the decoded trace)
	@$(RUN) -m guest_tests.demo $(if $(TRACE),--trace $(TRACE))

shell: setup ## boot a stock guest and stay at its shell
	@$(RUN) -m guest_tests.shell

test: parts ## all tests at their reduced count (what CI runs)
	@$(RUN) -m tests.lanes

soak: parts ## all tests at the full count the issues name
	@VDEV_TIER=soak $(RUN) -m pytest --timeout=0

check: setup ## style, types and import contracts only
	@$(RUN) -m pytest tests/test_checks.py

conformance: parts ## run the tests of every clause of the specification, write docs/conformance.md (NEW=1)
	@$(RUN) -m tests.conformance record $(if $(NEW),--new)

# Also: make bench QUICK=1 (under 4 minutes), ROUNDS=n, KERNEL=..., COMPARE=OLD.json; BASELINE=1 writes docs/benchmarks.md.
bench: parts ## measure against QEMU's own IOMMUs, assert nothing (QUICK=1, COMPARE=OLD.json)
	@$(RUN) -m benchmarks all $(if $(QUICK),--quick) $(if $(BASELINE),--baseline) $(if $(COMPARE),--compare $(COMPARE)) \
		$(if $(ROUNDS),--rounds $(ROUNDS)) $(if $(KERNEL),--kernel $(KERNEL))

# Also: TARGET=requests, JOBS=1, RECORD=1 (adds to docs/fuzz.json). docs/fuzzing.md tells about replaying and merging.
fuzz: setup ## feed every parser inputs nobody would send (MINUTES=n, TARGET=name)
	@$(RUN) -m tests.fuzz --minutes $(or $(MINUTES),1) $(if $(TARGET),--target $(TARGET)) $(if $(JOBS),--jobs $(JOBS)) \
		$(if $(RECORD),--record)

# Also: make mutate ONLY="id ...", CLAUSE="D16 ...", FILE=..., JOBS=n; RECORD=1 writes docs/mutations.md (of all of them only).
mutate: setup ## make small mistakes in the device, one at a time: a test must notice each (ONLY=, CLAUSE=, FILE=)
	@$(RUN) -m tests.mutation $(if $(ONLY),--only $(ONLY)) $(if $(CLAUSE),--clause $(CLAUSE)) $(if $(FILE),--file $(FILE)) \
		$(if $(JOBS),--jobs $(JOBS)) $(if $(RECORD),--record)

# Needs no .venv: it is there to say why there is none.
doctor: ## what this host has, what is missing, what to do
	@if [ -x $(RUN) ]; then $(RUN) -m vdev.parts doctor; else $(PYTHON) -m vdev.parts doctor; fi

clean: ## remove what tools and runs left in the tree (keeps .venv and the cache of parts)
	@rm -rf build run logs .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache *.egg-info
	@find . -name __pycache__ -type d -not -path './$(VENV)/*' -prune -exec rm -rf {} +
