# Each target does all set-up it needs on a machine with Python 3.11+, pip and make; a second call reuses the venvs.
PYTHON ?= python3
RUNTIME ?= $(if $(shell command -v nvidia-smi 2>/dev/null),gpu,cpu)
PIP_QUIET = --disable-pip-version-check --quiet
BIN = .venv/bin

.PHONY: demo test test-all coverage check format docs constraints clean

demo: .venv/installed
	rm -rf tl-demo
	$(BIN)/tl demo tl-demo

# Tests marked `alone` depend on time, and so run one by one after the others. More than 8 workers run out of memory
# before they gain time: each loads torch.
PYTEST = $(BIN)/python -m pytest
PARALLEL = -n auto --maxprocesses 8 --dist worksteal

test: .venv/installed
	$(PYTEST) $(PARALLEL) -m "not slow and not alone"
	$(PYTEST) -m "alone and not slow"

# What `make test` leaves out.
test-all: .venv/installed .venv-runtime/installed .venv-oldest/installed
	TL_OLDEST_PYTHON=.venv-oldest/bin/python $(PYTEST) $(PARALLEL) -m "slow and not alone"
	$(PYTEST) -m "alone and slow"
	.venv-runtime/bin/python -m pytest $(PARALLEL) tests/runtime
	.venv-oldest/bin/python -m pytest $(PARALLEL) tests/runtime

# Files of tl/ of which the quick tests run less than 80%; subprocesses are not measured.
coverage: .venv/installed
	$(PYTEST) $(PARALLEL) -m "not slow and not alone" -q --cov=tl --cov-report=
	$(BIN)/coverage report | awk '$$1 == "TOTAL" || ($$NF ~ /%$$/ && $$NF + 0 < 80)'

check: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python docs/make_cli.py --check

format: .venv/installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# The site, in site/. The variable silences a notice about MkDocs 2 that mkdocs-material prints.
docs: .venv/installed
	$(BIN)/python docs/make_cli.py
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install $(PIP_QUIET) -c constraints.txt -e '.[train,cli,$(RUNTIME),dev]'
	touch $@

# The runtime alone: no torch, typer or pydantic. onnx only builds the tests' small models.
.venv-runtime/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv-runtime
	.venv-runtime/bin/python -m pip install $(PIP_QUIET) -c constraints.txt -e '.[cpu]' pytest pytest-xdist hypothesis onnx
	touch $@

.venv-oldest/installed: pyproject.toml constraints-oldest.txt
	$(PYTHON) -m venv .venv-oldest
	.venv-oldest/bin/python -m pip install $(PIP_QUIET) -c constraints-oldest.txt -e '.[cpu]' pytest pytest-xdist hypothesis onnx
	touch $@

# Pins what a fresh, unpinned install resolves to.
constraints:
	rm -rf .venv-pin && $(PYTHON) -m venv .venv-pin
	.venv-pin/bin/python -m pip install $(PIP_QUIET) '.[train,cli,cpu,dev]'
	(head -1 constraints.txt; .venv-pin/bin/python -m pip freeze | grep -v '^tl-toolkit'; grep '^onnxruntime-gpu' constraints.txt) \
	  > constraints.new && mv constraints.new constraints.txt
	rm -rf .venv-pin

clean:
	rm -rf .venv .venv-* tl-demo site build dist *.egg-info .pytest_cache .coverage .mypy_cache .ruff_cache .hypothesis
