# make demo      install into .venv and run the first experiment
# make test      install the test tools too and run the tests, all but the slow ones
# make test-all  run the slow ones, too
# make bench     measure how fast the wires are, against what they are meant to reach
# make check     format, lint, types, import contract

PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install -q -c constraints.txt

export OMP_NUM_THREADS ?= 1

# What you have set for other Pythons (PYTHONOPTIMIZE, PYTHONPATH, PYTHONHOME ...) is not meant for the one in .venv,
# nor which of their plugins pytest loads.
unexport $(filter PYTHON% PYTEST_PLUGINS PYTEST_DISABLE_PLUGIN_AUTOLOAD,$(.VARIABLES))

.PHONY: demo test test-slow test-all bench check format clean

demo: .venv/installed
	@echo "Training on four workers, about a minute ..."
	PATH="$(CURDIR)/$(BIN):$$PATH" mpirun -n 4 bigbatch-exp ring

test: .venv/installed-test
	$(BIN)/python -m pytest -m "not slow" -n 2 --dist loadfile

test-slow: .venv/installed-test
	$(BIN)/python -m pytest -m slow

test-all: test test-slow

bench: .venv/installed
	$(BIN)/bigbatch-exp targets

check: .venv/installed-check
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: .venv/installed-check
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf .venv build dist *.egg-info

.venv/installed: pyproject.toml constraints.txt
	@echo "Installing bigbatch, torch and an MPI into .venv, once; this takes a minute or more ..."
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(PIP) -e ".[mpich]"
	touch $@

.venv/installed-test: .venv/installed
	$(PIP) -e ".[mpich,test]"
	touch $@

.venv/installed-check: .venv/installed
	$(PIP) -e ".[mpich,test,check]"
	touch $@
