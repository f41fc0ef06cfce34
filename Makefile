# Two commands on a fresh machine with Python 3.11+, make and git: `make demo` and `make test`.

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed

.PHONY: help install demo test check format bench clean

help:
	@echo "make demo    a local testnet of 5 real nodes keeps a file and a folder"
	@echo "make test    run the tests"
	@echo "make check   ruff and mypy --strict"
	@echo "make bench   measure against cp and plain HTTP"
	@echo "make format  let ruff mend what it can"
	@echo "make clean   remove $(VENV) and caches"

install: $(STAMP)

$(STAMP): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "meshnode needs Python 3.11 or newer; try: make PYTHON=python3.11 install")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade pip
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	# mypy and other readers of source trees see the repository root as the package `meshnode`.
	mkdir -p $(VENV)/src && ln -sfn ../.. $(VENV)/src/meshnode
	@touch $@

demo: $(STAMP)
	$(BIN)/python scripts/testnet.py --nodes 5 --demo

test: $(STAMP)
	$(BIN)/python -m pytest

check: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	cd $(VENV)/src && ../bin/mypy --config-file ../../pyproject.toml --cache-dir ../../.mypy_cache -p meshnode

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(STAMP)
	$(BIN)/python -m tests.bench

clean:
	rm -rf $(VENV) build *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
