# Two commands do everything on a fresh machine: `make sample` and `make test`.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready
# Without CUDA: the CPU build that everything here was tested with.
TORCH  ?= torch==2.13.0
EXTRAS := dev
CLASS  ?= all
DATA   ?=
OUT    ?= runs/demo
# A folder of wheels to install from, where there is no network.
WHEELS ?=
PIP    := $(BIN)/python -m pip install --quiet $(if $(WHEELS),--no-index --find-links "$(WHEELS)")

.PHONY: help setup sample demo docs test test-slow gpu check release-check clean

help:
	@echo "make sample [CLASS=207]   four images of each class of the bundled model: runs/bundled-samples/grid.png"
	@echo "make demo [DATA=folder]   the whole chain at small scale, ending with an image grid in $(OUT)"
	@echo "make test                 format, lint, types and tests"
	@echo "make docs                 the documentation, as pages in build/site"
	@echo "make release-check        builds the package, and samples with it alone, offline"
	@echo "make gpu [WHEELS=folder]  on an NVIDIA GPU: its tests, then a table of speeds in runs/gpu"
	@echo "make test-slow            the published tokenizers at full size, in minutes"

setup: $(READY)

# torch first, in its own call: a later plain `torch` could otherwise choose another build.
$(READY): pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) --upgrade pip
	$(PIP) "$(TORCH)"
	$(PIP) --editable ".[$(EXTRAS)]" "$(TORCH)"
	touch $(READY)

sample: $(READY)
	$(BIN)/coda sample --class "$(CLASS)" --out runs/bundled-samples --overwrite

demo: $(READY)
	$(BIN)/python -m coda.pipeline.demo --out "$(OUT)" $(if $(DATA),--data "$(DATA)")

check: $(READY) build/mypy/coda
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	MYPYPATH=build/mypy $(BIN)/mypy -p coda

# One worker per core, each with one thread: more threads would only wait for each other.
test: check
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n auto --dist worksteal -m "not slow" tests

# Tests that take minutes or gigabytes: the published tokenizers at full size.
test-slow: $(READY)
	$(BIN)/python -m pytest -q -m slow tests

docs: $(READY) build/mypy/coda
	$(BIN)/mkdocs build

# What is uploaded is what was checked: the wheel is built from the source distribution.
release-check: $(READY)
	rm -rf dist
	$(BIN)/python -m build --no-isolation
	$(BIN)/twine check --strict dist/*
	$(BIN)/python tests/check_release.py dist/*.whl

# In an environment of its own, with a CUDA build of torch. Nothing is installed where there is no GPU.
gpu:
	@nvidia-smi --list-gpus 2>/dev/null | grep -q "^GPU" || \
	  { echo "make gpu needs an NVIDIA GPU with its driver: nvidia-smi lists none" >&2; exit 1; }
	$(MAKE) setup VENV=.venv-gpu EXTRAS=dev,peers $(if $(filter file,$(origin TORCH)),TORCH="torch>=2.10")
	.venv-gpu/bin/python -m pytest -q -m gpu tests
	.venv-gpu/bin/python -m coda.pipeline.gpu_report

# mypy does not see setuptools' package mapping, so it gets a folder of links.
build/mypy/coda:
	mkdir -p $@
	for package in tokenizer generator benchmarks pipeline; do ln -sfn ../../../$$package $@/$$package; done

clean:
	rm -rf build *.egg-info .pytest_cache .mypy_cache .ruff_cache
