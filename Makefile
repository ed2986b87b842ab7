# Everything sets itself up: a virtual environment in .venv, re-used while what it installs is unchanged.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed-$(shell cat pyproject.toml ad_jobs/requirements.txt | sha256sum | cut -c1-16)
# Ranges that torch's CPU or CUDA wheels satisfy; name another index with PIP_INDEX_URL or PIP_EXTRA_INDEX_URL.
TORCH := torch torchvision
TESTS ?= tests
DEMO ?= demo
# Processes of pytest, each with a Ray and a store of its own: tests wait for those more than they compute.
JOBS ?= 2
PYTEST = OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder
# What make quick leaves out: fits that learn, processes that are started, and the search for a counterexample.
SLOW := $(addprefix tests/,contract e2e faults properties ad_jobs/fitting/test_loop.py ad_jobs/images/test_guard.py) \
	$(patsubst %,tests/models/test_%.py,workers golden mkd_fit fyd pmad ssm ssm_residual cyclegan autoencoder)
PACKAGES := retroscan ad_jobs models cluster
# Of what runs in these processes; what Ray's workers run is not counted.
COVERAGE := $(PACKAGES:%=--cov=%) --cov-report=

export RAY_USAGE_STATS_ENABLED := 0
export COVERAGE_FILE := $(VENV)/.coverage

.PHONY: help install test check lint types imports unit quick faults demo format clean

help:
	@echo "make demo     a phantom archive through every verb; the report lies in $(DEMO)/run/report/index.html"
	@echo "make test     format, lint, types, import rules, tests and what they cover"
	@echo "make quick    unit tests without Ray or a store, in two minutes"
	@echo "make faults   every fault of a scan, and clusters of several nodes: what make test leaves out for its length"
	@echo "make check    the same without the tests"
	@echo "make format   write the formatter's and linter's fixes"
	@echo "make clean    remove $(VENV) and $(DEMO)"

install: $(STAMP)

$(STAMP):
	@command -v $(PYTHON) >/dev/null || { echo "make needs $(PYTHON); name another with make PYTHON=python3.12"; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade "pip>=24"
	$(BIN)/python -m pip install --quiet $(TORCH)
	$(BIN)/python -m pip install --quiet --editable ".[dev,review,export]"
	rm -f $(VENV)/.installed-*
	touch $@

check: lint types imports

lint: $(STAMP)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

types: $(STAMP)
	$(BIN)/mypy

imports: $(STAMP)
	$(BIN)/lint-imports

unit: $(STAMP)
	$(PYTEST) -m "not full" $(COVERAGE) $(TESTS)
	@for package in $(PACKAGES); do \
		echo "covered of $$package: $$($(BIN)/coverage report --format=total --include="$$package/*") %"; done

quick: $(STAMP)
	$(PYTEST) -m "not ray and not s3 and not full" $(SLOW:%=--ignore=%) $(TESTS)

faults: $(STAMP)
	$(PYTEST) tests/faults tests/e2e/test_three_nodes.py tests/cluster/test_dataset.py tests/cluster/storage/test_lease.py tests/ad_jobs/fitting/test_auto.py

test: check unit

demo: $(STAMP)
	$(BIN)/retroscan demo --out $(DEMO)

format: $(STAMP)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf $(VENV) $(DEMO)
