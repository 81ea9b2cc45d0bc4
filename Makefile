# Two commands need only Python 3.11, 3.12 or 3.13:  make run   make test
# `make help` lists the others. PYTHON=... selects the interpreter, VENV=... the folder of the environment.

PYTHON ?= $(shell for p in python3 python python3.13 python3.12 python3.11; do \
  $$p -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' 2>/dev/null && echo $$p && break; done)
VENV ?= .venv
BIN := $(VENV)/bin
MEASURED ?=
export PIP_DISABLE_PIP_VERSION_CHECK := 1
# Do not use a Ray cluster that already runs on this machine.
export RAY_ADDRESS := local

.PHONY: help run test test-fast test-slow lint typecheck format docs predictor evaluate throughput evaluate-throughput ground-truth zero-ground-truth replay measured \
  measured-sample measure benchmark benchmark-service test-matrix test-drift lock clean

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 18

# ado prints the result between other lines of ado and Ray, so the answer is repeated at the end.
run: SHELL := bash
run: $(VENV)/installed  ## create the environment and answer the first example
	@echo "Asking examples/qwen.yaml through ado; starting Ray takes some seconds ..."
	set -o pipefail; $(BIN)/run_experiment examples/qwen.yaml | tee $(VENV)/answer.txt
	@awk '$$1 ~ /^(can_recommend|gpus|workers)$$/ { answer = answer (answer ? ", " : "") $$1 " " $$2 } \
	  END { print answer ? answer : "no answer"; exit !answer }' $(VENV)/answer.txt

# Three processes on two cores: tests of ado and Ray wait most of their time.
test: lint  ## create the environment and run lint and all tests except slow ones
	$(BIN)/python -m pytest -n 3 --dist loadfile -m "not slow"

test-fast: $(VENV)/installed  ## short tests that need neither PyTorch nor Ray
	$(BIN)/python -m pytest -n 2 --dist loadfile -m "not torch and not ray and not slow and not long"

test-slow: $(VENV)/tested  ## the tests that take minutes
	$(BIN)/python -m pytest -n 2 -m slow

lint: $(VENV)/tested typecheck  ## check style, imports, types and declared dependencies
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/deptry .

docs: $(VENV)/documented  ## build the documentation into build/site
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet
	@echo "The documentation is in build/site/index.html"

typecheck: $(VENV)/tested  ## check types
	$(BIN)/mypy

format: $(VENV)/installed  ## format the code and apply ruff's fixes
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

predictor: $(VENV)/build  ## rebuild the newest predictor version from the architectures, then evaluate it
	$(BIN)/python -m autoconf.pipeline.release.train
	$(MAKE) evaluate

evaluate: $(VENV)/build  ## evaluate the newest predictor version
	$(BIN)/python -m autoconf.pipeline.release.evaluate

throughput: $(VENV)/build  ## rebuild the throughput predictor from the measured rows
	$(BIN)/python -m autoconf.pipeline.throughput.release

evaluate-throughput: $(VENV)/build  ## judge throughput on held-out rows, next to physics alone and to a LightGBM without physics
	$(BIN)/python -m autoconf.pipeline.throughput.evaluate
	$(BIN)/python -m autoconf.pipeline.throughput.nested

ground-truth: $(VENV)/build  ## compare composed figures with traces of FSDP ranks, and these with real processes and full depth
	$(BIN)/python -m autoconf.pipeline.validation.composition
	$(BIN)/python -m autoconf.pipeline.validation.fsdp_strategies
	$(BIN)/python -m autoconf.pipeline.validation.rank_truth --output autoconf/pipeline/validation/rank_truth.csv

zero-ground-truth: $(VENV)/build  ## compare composed figures with tensors in real DeepSpeed processes
	$(BIN)/python -m autoconf.pipeline.validation.zero_truth --output autoconf/pipeline/validation/zero_truth.csv
	$(BIN)/python -m autoconf.pipeline.validation.zero_truth --offload --output autoconf/pipeline/validation/zero_offload_truth.csv

replay: $(VENV)/build  ## replay PyTorch's allocator for real runs near the limit of memory, and print the table
	$(BIN)/python -m autoconf.pipeline.replay.known_runs

measured: $(VENV)/build  ## trace the runs of MEASURED=runs.csv with their own stacks and libraries, and compare with the measured peaks
	@test -n "$(MEASURED)" || { echo "give a table of runs: make measured MEASURED=runs.csv" >&2; exit 2; }
	$(BIN)/python -m autoconf.pipeline.validation.compare_measured $(MEASURED)

measured-sample: $(VENV)/build  ## trace one run of each library environment again, and compare with the published peaks
	$(BIN)/python -m autoconf.pipeline.calibration.real_rows --check $(wildcard autoconf/pipeline/validation/one_run_per_environment/*.csv)

measure: $(VENV)/build  ## on a machine with a CUDA GPU: run the reference workload near the limit of memory
	$(BIN)/python -m autoconf.pipeline.validation.measure_gpu

benchmark: $(VENV)/installed  ## measure speed, each figure next to its baseline, into BENCHMARKS.md
	@mkdir -p build
	$(BIN)/python -m pytest benchmarks/figures.py --benchmark-json=build/benchmarks.json
	$(BIN)/python benchmarks/report.py build/benchmarks.json BENCHMARKS.md

benchmark-service: $(VENV)/installed  ## measure requests per second of a server on loopback, with 1, 16 and 64 clients
	$(BIN)/python benchmarks/service.py

test-matrix:  ## the suite's drift tests under other Pythons, AutoGluons and ados
	tests/matrix.sh all

test-drift:  ## one mismatched combination of the matrix, as CI runs it
	tests/matrix.sh drift

lock:  ## resolve requirements.lock again (needs uv)
	uv pip compile --universal --python-version 3.11 --extra test --extra serve --extra mcp --no-header --no-annotate \
	  --no-emit-index-url --no-emit-find-links pyproject.toml -o requirements.lock

clean:  ## remove the environment
	rm -rf $(VENV)

$(BIN)/python:
	@test -n "$(PYTHON)" || { echo "no Python 3.11, 3.12 or 3.13 found: set PYTHON=..." >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/installed: $(BIN)/python requirements.lock pyproject.toml
	@echo "Installing ado, Ray, AutoGluon and their dependencies into $(VENV): 1.3 GB, one to three minutes ..."
	$(BIN)/python -m pip install --quiet -r requirements.lock
	$(BIN)/python -m pip install --quiet --no-deps -e .
	@touch $@

# Versions are traced on Python 3.11; on later versions of Python the suite skips the tests that need torch.
$(VENV)/tested: $(VENV)/installed
	@if $(BIN)/python -c 'import sys; sys.exit(sys.version_info >= (3, 12))'; then $(MAKE) --no-print-directory $(VENV)/build; fi
	@touch $@

$(VENV)/documented: $(VENV)/installed
	$(BIN)/python -m pip install --quiet -c requirements.lock -e '.[docs]'
	@touch $@

$(VENV)/build: $(VENV)/installed
	@echo "Installing PyTorch (CPU), transformers and PEFT into $(VENV): 1.2 GB more, about a minute ..."
	$(BIN)/python -m pip install --quiet torch==2.13.0
	$(BIN)/python -m pip install --quiet -c requirements.lock -e '.[build]'
	@touch $@
