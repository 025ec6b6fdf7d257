# Each target does all set-up it needs on a machine with Python 3.11+, pip and make; a second call reuses the venvs.
PYTHON ?= python3
RUNTIME ?= $(if $(shell command -v nvidia-smi 2>/dev/null),gpu,cpu)
PIP_QUIET = --disable-pip-version-check --quiet
BIN = .venv/bin

.PHONY: demo test test-fast check format docs constraints clean

demo: .venv/installed
	rm -rf tl-demo
	$(BIN)/tl demo tl-demo

test: .venv/installed .venv-runtime/installed .venv-oldest/installed
	TL_OLDEST_PYTHON=.venv-oldest/bin/python $(BIN)/python -m pytest
	.venv-runtime/bin/python -m pytest tests/runtime
	.venv-oldest/bin/python -m pytest tests/runtime

test-fast: .venv/installed
	$(BIN)/python -m pytest -m "not slow"

check: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python docs/make_cli.py --check

format: .venv/installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: .venv/installed
	$(BIN)/python docs/make_cli.py

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install $(PIP_QUIET) -c constraints.txt -e '.[train,cli,$(RUNTIME),dev]'
	touch $@

# The runtime alone: no torch, typer or pydantic. onnx only builds the tests' small models.
.venv-runtime/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv-runtime
	.venv-runtime/bin/python -m pip install $(PIP_QUIET) -c constraints.txt -e '.[cpu]' pytest hypothesis onnx
	touch $@

.venv-oldest/installed: pyproject.toml constraints-oldest.txt
	$(PYTHON) -m venv .venv-oldest
	.venv-oldest/bin/python -m pip install $(PIP_QUIET) -c constraints-oldest.txt -e '.[cpu]' pytest hypothesis onnx
	touch $@

# Pins what a fresh, unpinned install resolves to.
constraints:
	rm -rf .venv-pin && $(PYTHON) -m venv .venv-pin
	.venv-pin/bin/python -m pip install $(PIP_QUIET) '.[train,cli,cpu,dev]'
	(head -1 constraints.txt; .venv-pin/bin/python -m pip freeze | grep -v '^tl-toolkit'; grep '^onnxruntime-gpu' constraints.txt) \
	  > constraints.new && mv constraints.new constraints.txt
	rm -rf .venv-pin

clean:
	rm -rf .venv .venv-* tl-demo build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
