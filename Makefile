# Two commands on a fresh machine with Python 3.11+, make and git: `make demo` and `make test`.

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
PIP    := PYTHONWARNINGS=ignore $(BIN)/python -m pip install --quiet --disable-pip-version-check

INTEROP_JS := tests/interop/js

.PHONY: help install demo test interop check format bench bench-transport bench-dht sim sim-transfer chaos clean

help:
	@echo "make demo    a local testnet of 5 real nodes keeps a file and a folder"
	@echo "make test    run the tests"
	@echo "make interop talk to js-libp2p and py-libp2p (js needs node and npm)"
	@echo "make check   ruff and mypy --strict"
	@echo "make bench   measure against cp, HTTP, nginx with TLS"
	@echo "make bench-transport  the transport against py-libp2p and plain TCP"
	@echo "make bench-dht  the DHT over real processes, and against py-libp2p's KadDHT"
	@echo "make sim     the DHT in simulated meshes of up to 10,000 nodes; tables"
	@echo "make sim-transfer     gets over modelled links on virtual time, as a table"
	@echo "make chaos   real nodes behind bad lines, as a table (minutes; QUICK=1: one)"
	@echo "make format  let ruff mend what it can"
	@echo "make clean   remove $(VENV) and caches"

install: $(STAMP)

$(STAMP): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "meshnode needs Python 3.11 or newer; try: make PYTHON=python3.11 install")'
	@echo "Installing meshnode and its tools into $(VENV) (about a minute)"
	@$(PYTHON) -m venv $(VENV)
	@$(PIP) --upgrade pip
	@$(PIP) --editable '.[dev]'
	@# What mypy reads: the repository root as the package `meshnode`, and trio itself, because a
	@# dependency of libp2p installs stubs of trio as it was in 2022 and mypy would prefer them.
	@mkdir -p $(VENV)/src && ln -sfn ../.. $(VENV)/src/meshnode
	@ln -sfn $$($(BIN)/python -c 'import trio, os; print(os.path.dirname(trio.__file__))') $(VENV)/src/trio
	@touch $@

demo: $(STAMP)
	$(BIN)/python scripts/testnet.py --nodes 5 --demo

# Two processes, a file of tests in one of them: most tests are bound by the processor, and the
# testnets are many processes already.
test: $(STAMP)
	$(BIN)/python -m pytest -n 2 --dist loadfile

# js-libp2p is installed here alone: without this, `make test` skips what needs it and says so.
interop: $(STAMP)
	@if ! command -v node >/dev/null || ! command -v npm >/dev/null; then \
		echo "*** node or npm is missing: js-libp2p is NOT tested, py-libp2p alone is." >&2; \
		echo "*** Install Node.js 20 or newer with npm, and run make interop again." >&2; \
	elif [ $(INTEROP_JS)/node_modules/.installed -nt $(INTEROP_JS)/package-lock.json ]; then :; \
	else \
		echo "Installing js-libp2p into $(INTEROP_JS)/node_modules"; \
		npm ci --prefix $(INTEROP_JS) --no-audit --no-fund --loglevel=error && \
		touch $(INTEROP_JS)/node_modules/.installed; \
	fi
	$(BIN)/python -m pytest tests/interop

check: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	cd $(VENV)/src && ../bin/mypy --config-file ../../pyproject.toml --cache-dir ../../.mypy_cache \
		-m meshnode -p meshnode.cli -p meshnode.config -p meshnode.dht -p meshnode.node -p meshnode.scripts

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(STAMP)
	$(BIN)/python -m tests.bench $(ARGS)

bench-transport: $(STAMP)
	$(BIN)/python -m tests.bench.transport $(ARGS)

bench-dht: $(STAMP)
	$(BIN)/python -m tests.bench.dht $(ARGS)

sim: $(STAMP)
	$(BIN)/python -m tests.simulation.dht_report $(ARGS)

sim-transfer: $(STAMP)
	$(BIN)/python -m tests.simulation.transfer

chaos: $(STAMP)
	$(BIN)/python -m scripts.chaos $(if $(QUICK),--quick) $(CHAOS)

clean:
	rm -rf $(VENV) build *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
