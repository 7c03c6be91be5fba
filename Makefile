# make demo   the whole way on the built-in cells, in a few minutes
# make smoke  whether this host can train: every objective, save, restore, its kernels; two minutes (tests/smoke)
# make check  the quick loop: lint, types, docs, the tests that take about a second; five minutes
# make test   all that a change must pass: lint, types, docs, all tests but the nightly ones; 20 minutes
# make docs   the pages of docs/ as a site in build/docs; what they refer to must exist
# make nightly   the tests that take minutes (compiling for TPUs, kills again and again, benchmarks); those of libraries'
#             numbers with the lowest versions that setup.py allows and with the newest (.venv-lowest, .venv-newest); the
#             package installed from its wheel and its sdist; models and objectives as XLA compiles for users
# All do their own set-up: .venv is made on the first call and kept until setup.py or constraints.txt change.
# .venv has JAX for CPUs. On a GPU or TPU host whose own Python has JAX: make smoke PYTHON_BIN=python3 (installs nothing)
PYTHON ?= python3
VENV := .venv
BIN := $(CURDIR)/$(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
# What users need, and besides it what tests need (readers, storage and builders that are extras for users).
INSTALLED := $(VENV)/.installed
INSTALLED_TEST := $(VENV)/.installed-test
# Where it is set, every process compiles the 3,600 modules that it imports anew: half of the processor time of a short run.
unexport PYTHONDONTWRITEBYTECODE
# Compiled programs are kept between commands; delete the folder to start anew.
export JAX_COMPILATION_CACHE_DIR ?= $(CURDIR)/.jax_cache
export JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS ?= 0.5

.PHONY: help install lint check test docs notebooks nightly nightly-long nightly-lowest nightly-newest nightly-default demo smoke clean

help:
	@sed -n '1,9s/^# //p' Makefile

install: $(INSTALLED_TEST)

# Bytecode is written when a module is first imported: most never are, and it is half of the time to install.
$(INSTALLED): setup.py constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(0 if (3, 11) <= v <= (3, 13) else "the versions tested together need Python 3.11 to 3.13, found %d.%d; say make PYTHON=python3.12" % v)'
	@echo "installing into $(VENV) (about a minute)"
	@$(PYTHON) -m venv $(VENV)
	@$(PIP) --no-compile -e . 2> $(VENV)/pip.log || (cat $(VENV)/pip.log; exit 1)
	@touch $@

$(INSTALLED_TEST): $(INSTALLED)
	@echo "installing what the tests need besides (about a minute)"
	@$(PIP) --no-compile -e '.[test,census]' 2> $(VENV)/pip.log || (cat $(VENV)/pip.log; exit 1)
	@touch $@

lint: $(INSTALLED_TEST)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

PYTEST := $(BIN)/python -m pytest -n 2 --dist worksteal

check: lint docs
	$(PYTEST) -q -m 'not slow and not nightly'

test: lint docs
	$(PYTEST) --durations 20 -m 'not nightly'

docs: $(INSTALLED_TEST)
	$(BIN)/python -m sphinx -q -n -W --keep-going docs build/docs

# Runs the tutorials and stores what they print; `make docs` shows what is stored, a test runs them without storing.
notebooks: $(INSTALLED_TEST)
	PATH="$(BIN):$$PATH" $(BIN)/python docs/run_notebooks.py

NIGHTLY_TESTS := -n 2 --dist worksteal -m 'not nightly' tests/models tests/objectives tests/training tests/data_pipelines \
	tests/tasks tests/evaluation tests/planning
# The newest anndata and jax need Python 3.12.
NEWEST_PYTHON ?= $(or $(shell for v in 13 12; do python3.$$v -c '' 2> /dev/null && echo python3.$$v && break; done),$(PYTHON))
# $(1): the folder; $(2): how uv chooses; $(3): the least version of pandas; $(4): its Python.
define nightly_environment
	$(4) -m venv $(1)
	$(1)/bin/python -m pip install --quiet --disable-pip-version-check 'uv>=0.13'
	echo 'pandas>=$(3)' > $(1)/constraints.in
	$(1)/bin/uv pip compile --quiet --python $(1)/bin/python $(2) setup.py -c $(1)/constraints.in -o $(1)/versions.txt
	$(1)/bin/python -m pip install --quiet --disable-pip-version-check -r $(1)/versions.txt -e .
endef

nightly: nightly-long nightly-lowest nightly-newest nightly-default

nightly-long: $(INSTALLED_TEST)
	$(PYTEST) --durations 20 -m nightly

nightly-lowest:
	$(call nightly_environment,.venv-lowest,--resolution lowest-direct --extra test --extra census,2,$(PYTHON))
	.venv-lowest/bin/python -m pytest $(NIGHTLY_TESTS)

# Without [census], which would keep pandas below 3.
nightly-newest:
	$(call nightly_environment,.venv-newest,--extra test,3,$(NEWEST_PYTHON))
	.venv-newest/bin/python -m pytest $(NIGHTLY_TESTS)

# The programs that users run: other tests compile theirs without optimisation, in a quarter of the time.
nightly-default: $(INSTALLED_TEST)
	SCMBERT_TESTS_XLA=default $(PYTEST) -m 'not nightly' tests/models tests/objectives \
		tests/training/test_train_step.py

demo: $(INSTALLED)
	@PATH="$(BIN):$$PATH" bash experiments/demo.sh

# Where there is an accelerator, JAX has to find it by itself; where there is none, programs compile faster for less speed.
ACCELERATORS := $(wildcard /dev/nvidia[0-9]* /dev/accel[0-9]* /dev/vfio/[0-9]*)
SMOKE := JAX_PLATFORMS="$(or $(JAX_PLATFORMS),$(if $(ACCELERATORS),,cpu))"

ifdef PYTHON_BIN
smoke:
	@$(PYTHON_BIN) -c 'import jax, flax, optax, orbax.checkpoint, pandas, pytest' \
		|| { echo "$(PYTHON_BIN) lacks what is named above; install it there: $(PYTHON_BIN) -m pip install pytest ..."; exit 1; }
	$(SMOKE) $(PYTHON_BIN) -m pytest tests/smoke
else
smoke: $(INSTALLED)
	@$(BIN)/python -c 'import pytest' 2> /dev/null || $(PIP) pytest
	$(SMOKE) $(BIN)/python -m pytest tests/smoke
endif

clean:
	rm -rf $(VENV) .venv-lowest .venv-newest demo_run .jax_cache .pytest_cache .mypy_cache .ruff_cache .hypothesis *.egg-info build
