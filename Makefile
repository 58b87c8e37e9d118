# make setup   a virtual environment in .venv with everything pinned
# make demo    the whole job on the embedded pair; leaves a report in demo-run/
# make test    every test that needs neither a GPU nor more than half a minute
# make test-triton   the tests of the GPU products, in Triton's interpreter and compiled; Linux, no GPU
# make test-engines   the tests that need vLLM; makes its environment first, which takes minutes
# make check   formatter, linter, type checker
# make campaigns   kills, fuzzing, simulated verdicts, replay by size: reports/campaigns, about an hour
# make audit   pinned dependencies against the advisory database; exit 3: it could not be reached
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.complete
# Triton lies in an environment of its own, which sees the main one: 900 MB that other tests do not need.
TRITON := .venv-triton
TRITON_STAMP := $(TRITON)/.complete
PACKAGES = -c 'import sysconfig; print(sysconfig.get_path("purelib"))'
INSTALL_VLLM = $(BIN)/quantdraft engines list --json | grep -q '"version"' || $(BIN)/quantdraft engines install vllm

.PHONY: setup demo test test-slow test-triton test-engines bench bench-long campaigns check audit clean

setup: $(STAMP)

$(STAMP): pyproject.toml .ci/constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -c .ci/constraints.txt -e '.[llmcompressor,bitsandbytes,gptqmodel,llamacpp,ray,dev]'
	touch $(STAMP)

demo: setup
	$(BIN)/quantdraft demo --output demo-run --force

# Two processes of one thread each: torch's own threads gain little on models this small.
test: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile -m "not slow and not gpu and not engine and not triton"

test-slow: setup
	$(INSTALL_VLLM)
	$(BIN)/python -m pytest -m "slow and not gpu and not triton"

# Under TRITON_INTERPRET kernels run on a CPU; what compiles them starts processes without it.
test-triton: $(TRITON_STAMP)
	OMP_NUM_THREADS=1 TRITON_INTERPRET=1 $(TRITON)/bin/python -m pytest -n 2 -m triton tests/engines

$(TRITON_STAMP): $(STAMP) .ci/triton.txt
	@test "$$(uname -s)" = Linux || { echo "triton has packages for Linux alone" >&2; exit 1; }
	$(BIN)/python -m venv --clear --without-pip $(TRITON)
	echo "import site; site.addsitedir('$$($(BIN)/python $(PACKAGES))')" > "$$($(TRITON)/bin/python $(PACKAGES))/main.pth"
	$(TRITON)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps -r .ci/triton.txt
	touch $(TRITON_STAMP)

test-engines: setup
	$(INSTALL_VLLM)
	$(BIN)/python -m pytest -m "engine and not slow"

bench: setup
	$(BIN)/python -m tests.benchmarks.draft_step --shape llama-3.2-1b
	$(BIN)/python -m tests.benchmarks.live_loop
	$(BIN)/python -m tests.benchmarks.control
	$(BIN)/python -m tests.benchmarks.replay_vs_assisted

bench-long: setup
	$(BIN)/python -m tests.benchmarks.apply_vs_oneshot
	$(BIN)/python -m tests.benchmarks.calibration_sources --work-dir runs/calibration --output reports/calibration

campaigns: setup
	$(BIN)/python -m tests.campaigns.faults --kills 250 --output reports/campaigns
	$(BIN)/python -m tests.campaigns.fuzz --output reports/campaigns
	$(BIN)/python -m tests.campaigns.architectures --again --output reports/campaigns
	$(BIN)/python -m tests.campaigns.record_values --changes 8000 --draw 12 --output reports/campaigns
	$(BIN)/python -m tests.campaigns.null_calibration --output reports/campaigns
	$(BIN)/python -m tests.campaigns.repeats --output reports/campaigns
	$(BIN)/python -m tests.benchmarks.replay_scaling --largest 100000 --output reports/campaigns
	$(BIN)/python -m tests.campaigns.evaluate_memory --output reports/campaigns
	$(BIN)/python -m tests.campaigns.ray_sweep --output reports/campaigns

check: setup
	$(BIN)/ruff format --check quantdraft tests
	$(BIN)/ruff check quantdraft tests
	$(BIN)/mypy

audit: setup
	$(BIN)/python .ci/audit.py

clean:
	rm -rf $(VENV) $(TRITON) demo-run .pytest_cache .mypy_cache .ruff_cache
