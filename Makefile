# make demo: install and run the comparison.  make test: install and run the tests.  Nothing has to be done before.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# every file that pip takes is compared with supply/hashes.txt; make TRUST=torch demo takes this package's as it is found
INSTALL := $(BIN)/python supply/install.py $(addprefix --trust ,$(TRUST))

.PHONY: demo test test-slow lint types bench package docs clean

demo: $(VENV)/installed
	$(BIN)/fedexperts run configs/demo

test: $(VENV)/installed-dev
	$(BIN)/python -m pytest

test-slow: $(VENV)/installed-dev
	$(BIN)/python -m pytest -m slow $(TESTS)

lint: $(VENV)/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/installed-dev
	$(BIN)/mypy

bench: $(VENV)/installed-dev
	for name in text_encoder step round together gate fuse; do $(BIN)/python benchmarks/$$name.py || exit 1; done

package: $(VENV)/installed-dev
	$(BIN)/python supply/package.py $(or $(PACKAGE),$(error type: make package PACKAGE=FOLDER, a new folder outside of the checkout))

docs: $(VENV)/installed-dev
	$(BIN)/mkdocs build --strict

clean:
	rm -rf $(VENV) runs

$(VENV)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "fedexperts needs Python 3.11 or newer; this is " + sys.version.split()[0] + ". Try: make PYTHON=python3.12 demo")'
	$(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/installed: $(VENV)/python pyproject.toml constraints.txt supply/hashes.txt
	$(INSTALL) pandas
	@touch $@

$(VENV)/installed-dev: $(VENV)/python pyproject.toml constraints.txt supply/hashes.txt
	$(INSTALL) dev
	@touch $(VENV)/installed $@
