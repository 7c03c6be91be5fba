# make demo   the whole way on the built-in cells, in a few minutes
# make test   lint, types, all tests
# Both do their own set-up: .venv is made on the first call and kept until setup.py or constraints.txt change.
PYTHON ?= python3
VENV := .venv
BIN := $(CURDIR)/$(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
# What users need, and besides it what tests need (readers, storage and builders that are extras for users).
INSTALLED := $(VENV)/.installed
INSTALLED_TEST := $(VENV)/.installed-test
# Compiled programs are kept between commands; delete the folder to start anew.
export JAX_COMPILATION_CACHE_DIR ?= $(CURDIR)/.jax_cache
export JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS ?= 0.5

.PHONY: help install lint test demo clean

help:
	@sed -n '1,3s/^# //p' Makefile

install: $(INSTALLED_TEST)

# Bytecode is written when a module is first imported: most never are, and it is half of the time to install.
$(INSTALLED): setup.py constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(0 if (3, 11) <= v <= (3, 13) else "Python 3.11 to 3.13 is needed, found %d.%d; say make PYTHON=python3.12" % v)'
	@echo "installing into $(VENV) (about a minute)"
	@$(PYTHON) -m venv $(VENV)
	@$(PIP) --no-compile -e . 2> $(VENV)/pip.log || (cat $(VENV)/pip.log; exit 1)
	@touch $@

$(INSTALLED_TEST): $(INSTALLED)
	@echo "installing what the tests need besides (about a minute)"
	@$(PIP) --no-compile -e '.[test]' 2> $(VENV)/pip.log || (cat $(VENV)/pip.log; exit 1)
	@touch $@

lint: $(INSTALLED_TEST)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test: lint
	$(BIN)/python -m pytest -n 2 --dist worksteal

demo: $(INSTALLED)
	@PATH="$(BIN):$$PATH" bash experiments/demo.sh

clean:
	rm -rf $(VENV) demo_run .jax_cache .pytest_cache .mypy_cache .ruff_cache .hypothesis *.egg-info build
