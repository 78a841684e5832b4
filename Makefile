# Two commands do it all on a fresh machine: `make demo` and `make test`.
PYTHON ?= python3.11
VENV := .venv
RUN := $(VENV)/bin/python
UV := $(VENV)/bin/uv
INSTALLED := $(VENV)/.installed

# pip's extra wheels, where there are any, are for uv too.
export UV_FIND_LINKS ?= $(PIP_FIND_LINKS)
export MLFLOW_DISABLE_TELEMETRY := true
export BENTOML_DO_NOT_TRACK := True
export HF_HUB_DISABLE_TELEMETRY := 1
export MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR := false
export TOKENIZERS_PARALLELISM := false
export OMP_WAIT_POLICY := PASSIVE

.PHONY: help demo up test lint bench lock clean
help:  ## what there is
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*##/  make \1\t/' | expand -t 16

demo: $(INSTALLED)  ## the whole loop, told as it happens
	@$(RUN) -m infra.demo

up: $(INSTALLED)  ## Prefect UI, MLflow UI and the champion stay up until Ctrl-C
	@$(RUN) -m infra.up configs/demo.yaml

test: $(INSTALLED)  ## all tests
	$(RUN) -m pytest -n 2 --dist loadfile

lint: $(INSTALLED)  ## style and types
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

bench: $(INSTALLED)  ## each benchmark against its alternative, in one run
	@missed=; for bench in tests/benchmarks/bench_*.py; do \
	  $(RUN) -m tests.benchmarks.$$(basename $$bench .py) || missed="$$missed $$bench"; done; \
	  [ -z "$$missed" ] || { echo "error: failed or missed its goal:$$missed"; exit 1; }

lock: $(INSTALLED)  ## pin everything anew; torch brings its CUDA packages itself, so they stay out
	env -u UV_FIND_LINKS $(UV) pip compile -q --universal --python-version 3.11 --group dev \
	  --no-annotate --no-header --no-emit-index-url --no-emit-find-links pyproject.toml \
	  | grep -vE '^(triton|cuda-|nvidia-(cu|nc|nv))' > requirements.lock

clean:  ## remove the environment and all local state: models, runs, captures
	rm -rf $(VENV) var .mypy_cache .ruff_cache .hypothesis

# The lock overrides caps that don't hold (pyproject.toml says which), so it goes in without
# dependencies; torch goes in with its own, which differ between the CPU and the CUDA build.
$(INSTALLED): requirements.lock
	@command -v $(PYTHON) > /dev/null || { echo "error: $(PYTHON) not found; install Python 3.11 or set PYTHON=…"; exit 1; }
	@$(RUN) -m pip --version > /dev/null 2>&1 || $(PYTHON) -m venv --clear $(VENV) \
	  || { echo "error: no virtual environment; on Debian: apt install python3.11-venv"; exit 1; }
	@$(RUN) -m pip install -qq "$$(grep '^uv==' requirements.lock)"
	@$(UV) pip install -q --python $(RUN) "$$(grep '^torch==' requirements.lock)"
	@$(UV) pip install -q --python $(RUN) --no-deps -r requirements.lock
	@mkdir -p var
	@touch $@
