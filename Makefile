# `make demo` and `make test` do their own set-up; a second call reuses it.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.setup-done

TRITON_VENV := .venv-triton

.PHONY: setup demo test test-slow lint types triton-env triton-models

setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $(STAMP)

# A Triton server for the tests marked `triton`, which are skipped without it (570 MB, a minute).
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

# One more than there are cores: a third of the time tests wait, for servers and for what they have killed.
test test-slow: WORKERS = $(shell $(BIN)/python -c 'import os; print(os.cpu_count() + 1)')
# Where the server's wheel does not exist, its tests are skipped and say so.
test: SELECTED = not slow
test-slow: SELECTED = slow
test test-slow: setup
	@$(MAKE) --no-print-directory triton-env || echo "no Triton server for this machine"
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses $(WORKERS) --dist loadfile -m "$(SELECTED)"

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: setup
	$(BIN)/mypy
