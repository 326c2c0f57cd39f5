# Needs python3 (3.11 or newer), make and a package index; `make` alone says what there is.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
WORKERS ?= 2

.DEFAULT_GOAL := help
.PHONY: help env demo test check bench clean

help:
	@echo "make demo    set up, then run the main job on the digits that ship inside scikit-learn"
	@echo "make test    set up, then run every test"
	@echo "make env     set up only: $(VENV) with the versions in constraints.txt"
	@echo "make check   everything CI does: format, lint, types, tests"
	@echo "make bench   the measured claims, one table each"
	@echo "make clean   remove $(VENV), caches and runs/"

env: $(STAMP)

# The stamp is written last, so that an interrupted set-up is done again and a finished one is reused.
$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "understudy needs Python 3.11 or newer; this is $$($(PYTHON) --version). Name another with: make PYTHON=python3.12 ..."; exit 2; }
	@echo "Setting up $(VENV) with $$($(PYTHON) --version): downloads PyTorch and others once, which takes some minutes."
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt -e '.[all,dev]'
	@touch $(STAMP)
	@echo "Set up. It is reused until pyproject.toml or constraints.txt changes."

demo: $(STAMP)
	$(BIN)/understudy distill recipes/digits.toml

test: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS)

check: $(STAMP)
	WORKERS=$(WORKERS) scripts/check

bench: $(STAMP)
	@for file in benchmarks/*.py; do echo; echo "$$file"; $(BIN)/python $$file || exit 1; done

clean:
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache .hypothesis runs recipes/runs build src/*.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
