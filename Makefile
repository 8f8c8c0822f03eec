# Needs Python 3.11 or newer, make and git; everything is installed into .venv.
PYTHON ?= python3.11
BIN := .venv/bin

.PHONY: setup demo test lint fast docs peers test-peers clean

setup: .venv/.installed

.venv/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	touch $@

demo: setup
	$(BIN)/isopose demo --output demo

test: lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal

fast: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 -m "not slow"

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# nnU-Net v2, against which some tests compare, in an environment of its own: it needs torchvision, and with
# it another build of torch.
docs: setup
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

peers: .venv-peers/.installed

.venv-peers/.installed: pyproject.toml
	$(PYTHON) -m venv .venv-peers
	.venv-peers/bin/python -m pip install --quiet --disable-pip-version-check \
		torch==2.14.1 torchvision==0.29.1 nnunetv2
	.venv-peers/bin/python -m pip install --quiet --disable-pip-version-check -e ".[dev]"
	touch $@

test-peers: peers
	.venv-peers/bin/python -m pytest tests/data/test_nnunet_parity.py tests/study/test_nnunet.py \
		tests/homogenize/test_before_nnunet.py tests/nnunet

clean:
	rm -rf .venv .venv-peers demo build dist
