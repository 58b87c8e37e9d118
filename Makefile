# make setup   a virtual environment in .venv with everything pinned
# make demo    the whole job on the embedded pair; leaves a report in demo-run/
# make test    every test that needs neither a GPU nor more than half a minute
# make test-engines   the tests that need vLLM; makes its environment first, which takes minutes
# make check   formatter, linter, type checker
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.complete
INSTALL_VLLM = $(BIN)/quantdraft engines list --json | grep -q '"version"' || $(BIN)/quantdraft engines install vllm

.PHONY: setup demo test test-slow test-engines bench check clean

setup: $(STAMP)

$(STAMP): pyproject.toml .ci/constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -c .ci/constraints.txt -e '.[llmcompressor,bitsandbytes,gptqmodel,dev]'
	touch $(STAMP)

demo: setup
	$(BIN)/quantdraft demo --output demo-run --force

test: setup
	$(BIN)/python -m pytest -m "not slow and not gpu and not engine"

test-slow: setup
	$(INSTALL_VLLM)
	$(BIN)/python -m pytest -m "slow and not gpu"

test-engines: setup
	$(INSTALL_VLLM)
	$(BIN)/python -m pytest -m "engine and not slow"

bench: setup
	$(BIN)/python -m tests.benchmarks.draft_step --shape llama-3.2-1b
	$(BIN)/python -m tests.benchmarks.live_loop
	$(BIN)/python -m tests.benchmarks.control
	$(BIN)/python -m tests.benchmarks.replay_vs_assisted

check: setup
	$(BIN)/ruff format --check quantdraft tests
	$(BIN)/ruff check quantdraft tests
	$(BIN)/mypy

clean:
	rm -rf $(VENV) demo-run .pytest_cache .mypy_cache .ruff_cache
