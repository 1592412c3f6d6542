# Each target sets up .venv by itself; only Python >= 3.11 with pip and venv must be there.
#   make test     install what is missing, then run the test suite
#   make demo     install what is missing, then run examples/demo.sh
#   make lint     ruff, mypy --strict, the import rule, the figures of tools/figures.py
#   make format   let ruff mend and format what it can
#   make lock     rewrite constraints.txt with the newest releases that pyproject.toml admits
#   make clean    remove .venv and every cache

VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
EXTRAS := so3lr,chgnet,sevennet,tensornet,qm9,hdf5,lmdb,xtb,ray,surgery,collapse,splits,distributed,dev
# torch goes first and alone: any other package that asks for it might choose another build.
TORCH := torch==2.13.0
PIP_OPTIONS := -qq --no-compile --disable-pip-version-check
SOURCES := src tests benchmarks tools conftest.py
WORKERS ?= 2
# The workers share the cores; threads inside each would only compete.
ONE_THREAD := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1

PYTHON ?= $(shell for candidate in python3.11 python3; do \
	"$$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null \
	&& command -v "$$candidate" && break; done)

# $(call install,FOLDER,PIP OPTIONS): a new virtual environment with the package in it.
# Modules are compiled here, all cores at it (pip would take one): left to the first import, warnings
# about other people's sources would come up in the tests, where warnings are errors. A few packages
# carry files that no Python compiles, which is not a failure.
define install
	@test -n "$(PYTHON)" || { \
		echo "no Python >= 3.11 found as python3.11 or python3: install one, or make PYTHON=/path/to/it" >&2; \
		exit 1; }
	$(PYTHON) -m venv $(1)
	$(1)/bin/python -m pip install $(PIP_OPTIONS) $(2) $(TORCH)
	$(1)/bin/python -m pip install $(PIP_OPTIONS) $(2) -e '.[$(EXTRAS)]'
	$(1)/bin/python -W ignore -m compileall -qq -j 0 $(1)/lib || true
endef

.PHONY: test demo lint format lock clean

# A file's tests on one worker, whose fixtures are then made once; the last files are quick ones.
test: $(INSTALLED)
	$(ONE_THREAD) $(BIN)/python -m pytest -q -n $(WORKERS) --dist loadfile --no-loadscope-reorder

demo: $(INSTALLED)
	PATH="$(CURDIR)/$(BIN):$$PATH" bash examples/demo.sh

lint: $(INSTALLED)
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/ruff format --check $(SOURCES)
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python tools/figures.py

format: $(INSTALLED)
	$(BIN)/ruff check --fix $(SOURCES)
	$(BIN)/ruff format $(SOURCES)

# The stamp is written last, so that an installation that broke off is done again.
$(INSTALLED): pyproject.toml constraints.txt
	$(call install,$(VENV),-c constraints.txt)
	@touch $@

lock:
	rm -rf .lock
	$(call install,.lock,)
	.lock/bin/python tools/lock.py > .lock/constraints.txt
	mv .lock/constraints.txt constraints.txt
	rm -rf .lock

clean:
	rm -rf $(VENV) .lock .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	find src tests benchmarks tools -name __pycache__ -type d -prune -exec rm -rf {} +
