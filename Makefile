# `make demo` and `make test` do their own set-up; a second call reuses it.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.setup-done

TRITON_VENV := .venv-triton

.PHONY: setup demo test test-slow test-triton test-all server lint types triton-env triton-models

setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $(STAMP)

# A Triton server for the tests marked `triton` (570 MB, a minute).
triton-env: $(TRITON_VENV)/READY

$(TRITON_VENV)/READY: constraints-triton.txt
	test -x $(TRITON_VENV)/bin/python || $(PYTHON) -m venv $(TRITON_VENV)
	$(TRITON_VENV)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints-triton.txt \
		nvidia-pytriton onnxruntime numpy opencv-python-headless
	echo ready > $@

# The committed skeleton, after a change of what `wsss export --triton` renders.
triton-models: setup
	$(BIN)/python -m wsss.export.triton.skeleton triton_models

demo: setup
	$(BIN)/wsss demo --out demo_out --overwrite

CORES = $(shell $(BIN)/python -c 'import os; print(os.cpu_count())')

# `test-slow` also repeats the properties of hypothesis, with many examples.
test: SELECTED = not slow and not triton
test-slow: SELECTED = (slow or hypothesis) and not triton
test-slow test-all: OPTIONS = --hypothesis-profile many
test-triton: SELECTED = triton
test test-slow: WORKERS = $(CORES)
# Tests of a server wait for a third of their time.
test-triton test-all: WORKERS = $$(($(CORES) + 1))
test-triton test-all: server
test test-slow test-triton test-all: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses $(WORKERS) --dist loadfile $(OPTIONS) -m "$(SELECTED)"

# Where the server's wheel does not exist, its tests are skipped and say so.
server:
	@$(MAKE) --no-print-directory triton-env || echo "no Triton server for this machine"

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: setup
	$(BIN)/mypy
