# One command from a clone to a report: `make report`. `make report DATA=path` uses your photographs.
PYTHON ?= python3.11
VENV   ?= .venv
DATA   ?=
BIN    := $(VENV)/bin

.PHONY: report test check install clean

report: $(VENV)/.installed
	$(BIN)/nailtool report $(if $(DATA),--data "$(DATA)")

test: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile

install: $(VENV)/.installed

# Stamps, so that a second `make report` starts at once; pip runs again when the pins change.
$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e .
	@touch $@

$(VENV)/.installed-dev: pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e ".[dev]"
	@touch $@ $(VENV)/.installed

clean:
	rm -rf artifacts reports/*.html.tmp .mypy_cache .pytest_cache .ruff_cache
