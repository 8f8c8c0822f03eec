# Needs Python 3.11 or newer, make and git; everything is installed into .venv.
PYTHON ?= python3.11
BIN := .venv/bin

.PHONY: setup demo test lint fast clean

setup: .venv/.installed

.venv/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	touch $@

demo: setup
	$(BIN)/isopose demo --output demo

test: lint
	$(BIN)/python -m pytest -n 2 --dist worksteal

fast: setup
	$(BIN)/python -m pytest -n 2 -m "not slow"

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:
	rm -rf .venv demo build dist
