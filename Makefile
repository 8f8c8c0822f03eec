# Needs Python 3.11 or newer, make and git; everything is installed into .venv.
PYTHON ?= python3.11
BIN := .venv/bin

.PHONY: setup demo test test-long lint fast docs peers test-peers release clean

setup: .venv/.installed

.venv/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	touch $@

demo: setup
	$(BIN)/isopose demo --output demo

test: lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal -m "not long"

# Files that take more than a minute: the study, the page in a browser, faults of disk and memory, damaged files,
# trainings in several processes, notebooks, clusters, graphs, large reviews.
test-long: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal -m long

fast: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 -m "not slow and not long"

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

docs: setup
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

# nnU-Net v2, against which some tests compare, in an environment of its own: it needs torchvision, and with
# it another build of torch.
peers: .venv-peers/.installed

.venv-peers/.installed: pyproject.toml
	$(PYTHON) -m venv .venv-peers
	.venv-peers/bin/python -m pip install --quiet --disable-pip-version-check \
		torch==2.14.1 torchvision==0.29.1 nnunetv2
	.venv-peers/bin/python -m pip install --quiet --disable-pip-version-check -e ".[dev]"
	touch $@

test-peers: peers
	OMP_NUM_THREADS=1 .venv-peers/bin/python -m pytest -n 2 --dist worksteal \
		tests/data/test_nnunet_parity.py tests/study/test_nnunet.py \
		tests/homogenize/test_before_nnunet.py tests/nnunet

# Wheel and sdist; what is installed with them, as a bill of materials; its licenses; and its known weaknesses,
# where the tool reaches a database of them.
RUNTIME := build/runtime/bin/python
TOOLS := .venv-release/bin
release:
	rm -rf dist build/runtime
	$(PYTHON) -m venv .venv-release
	$(TOOLS)/python -m pip install --quiet --disable-pip-version-check build cyclonedx-bom pip-audit pip-licenses
	$(TOOLS)/python -m build --outdir dist .
	$(PYTHON) -m venv build/runtime
	$(RUNTIME) -m pip install --quiet --disable-pip-version-check -c constraints.txt torch dist/*.whl
	$(TOOLS)/cyclonedx-py environment $(RUNTIME) --output-reproducible -o dist/isopose.cdx.json
	sed -i "s|file://$(CURDIR)/dist/||" dist/isopose.cdx.json
	$(PYTHON) -c "import json; bom = json.load(open('dist/isopose.cdx.json')); \
		bom['components'].append(json.load(open('src/isopose/serve/static/niivue/component.json'))); \
		json.dump(bom, open('dist/isopose.cdx.json', 'w'), indent=2)"
	$(TOOLS)/pip-licenses --python $(RUNTIME) --from mixed --partial-match --fail-on "GPL;GNU;Proprietary;UNKNOWN" \
		--format csv --output-file dist/licenses.csv
	$(TOOLS)/pip-audit --path $$($(RUNTIME) -c "import sysconfig; print(sysconfig.get_path('purelib'))") --progress-spinner off \
		> dist/audit.txt 2>&1 || echo "pip-audit: see dist/audit.txt"
	@! grep -q "could not be audited" dist/audit.txt || echo "pip-audit: not all could be looked up, see dist/audit.txt"
	ls dist

clean:
	rm -rf .venv .venv-peers .venv-release demo build dist
