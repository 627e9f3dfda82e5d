# Each target sets up what it needs; `make help` lists them.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help install run test test-slow choose-lambda bench bench-sweep bench-peers results lint format clean-stages clean

help: ## list the targets
	@grep -hE '^[a-z][a-z-]*:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-12s %s\n", $$1, $$2}'

install: $(STAMP) ## make the environment in .venv that the other targets use

# Wheels are kept compressed on the way: the environment takes 5.6 GB and some three minutes.
$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	@touch $@

run: $(STAMP) ## the main job: MNIST, then USPS, EWC beside fine-tuning (ARGS='max_epochs=1 seed=1')
	$(BIN)/lifelong-quickstart $(ARGS)

test: $(STAMP) ## run the tests (ARGS='-k fisher')
	$(BIN)/pytest -m 'not slow' $(ARGS)

test-slow: $(STAMP) ## run the tests that take minutes
	$(BIN)/pytest -m slow $(ARGS)

choose-lambda: $(STAMP) ## sweep λ on validation images, best first (ARGS='--seeds 0')
	$(BIN)/python benchmarks/choose_lambda.py $(ARGS)

bench: $(STAMP) ## the cost of each part as ratios, on MNIST in LIFELONG_DATA or data/ (ARGS='steps')
	$(BIN)/python benchmarks/bench.py --data $${LIFELONG_DATA:-data} $(ARGS)

bench-sweep: $(STAMP) ## a sweep over eight values of λ beside one run (ARGS='--rounds 3')
	$(BIN)/python benchmarks/sweep.py --data $${LIFELONG_DATA:-data} $(ARGS)

bench-peers: $(STAMP) ## the whole job beside Avalanche's, whose environment is PEERS=DIR
	$(BIN)/python benchmarks/peers.py $(PEERS) --data $${LIFELONG_DATA:-data} $(ARGS)

.PHONY: budget
budget: $(STAMP) ## a budget instead of λ: promised against kept (ARGS='--watch 50,200 --seeds 0,1,2')
	$(BIN)/python benchmarks/budget.py $(ARGS)

results: $(STAMP) ## the README's table: five seeds, each method (ARGS='--keep DIR' for `make pictures`)
	$(BIN)/python benchmarks/main_job.py $(ARGS)

.PHONY: demo
demo: $(STAMP) ## draw a digit, read by the EWC network and the fine-tuned one (ARGS='--port 8081')
	$(BIN)/lifelong-demo $(ARGS)

.PHONY: pictures
pictures: $(STAMP) ## the README's pictures from the stored results
	$(BIN)/python benchmarks/pictures.py $(ARGS)

.PHONY: notebooks
notebooks: $(STAMP) ## run the notebooks and keep their outputs (ARGS='notebooks/choosing_lambda.ipynb')
	$(BIN)/python notebooks/execute.py $(ARGS)

lint: $(STAMP) ## check style and types
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

format: $(STAMP) ## bring the style in order
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

clean-stages: ## forget the learnt stages that runs share
	rm -rf "$${LIFELONG_STAGES:-outputs/.stages}"

clean: ## remove what was made: environment, results, caches (data/ stays)
	rm -rf $(VENV) outputs multirun build dist .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
