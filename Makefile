# Everything here works on a fresh clone: the virtual environment is made, and excise installed, when first needed.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

# Several processes share a machine, and the demo's tensors are small: threads beyond the cores only get in each other's way.
export TOKENIZERS_PARALLELISM ?= false

.PHONY: help demo test test-all zoo lint format docs architectures bench coverage ground-truth install clean

help:
	@echo "make demo      remove a behavior from the bundled model, in a few minutes and without a network"
	@echo "make test      the tests (test-all: those that take minutes as well)"
	@echo "make lint      ruff, mypy, import-linter (format: let ruff fix what it can)"
	@echo "make zoo       every decoder architecture of the installed Transformers: covered, proven, baked"
	@echo "make docs      write docs/cli.md again (architectures: docs/architectures.md, from what is measured)"
	@echo "make bench     the whole job on a realistic model (coverage: which writers a public tool finds;"
	@echo "                ground-truth: search methods where the truth is known, in an hour or two): see bench/"

install: $(INSTALLED)

$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "excise needs Python 3.11 or later; say where it is: make PYTHON=/path/to/python3.12 $(MAKECMDGOALS)"; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $(INSTALLED)

demo: $(INSTALLED)
	$(BIN)/excise demo

# As many processes as there are cores, at most four, on one thread each.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --maxprocesses 4 --dist worksteal

test: $(INSTALLED)
	$(PYTEST) -m "not slow"

test-all: $(INSTALLED)
	$(PYTEST)

zoo: $(INSTALLED)
	$(BIN)/python -m pytest tests/zoo

lint: $(INSTALLED)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(INSTALLED)
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

docs: $(INSTALLED)
	$(BIN)/python -m excise.cli.reference > docs/cli.md

architectures: $(INSTALLED)
	$(BIN)/python tests/zoo/document.py

bench: $(INSTALLED)
	$(BIN)/python bench/real_model.py $(ARGS)

coverage: $(INSTALLED)
	$(BIN)/python bench/coverage.py --table bench/coverage.md $(ARGS)

ground-truth: $(INSTALLED)
	$(BIN)/python bench/ground_truth.py --write docs/ground-truth.md $(ARGS)

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis build dist
