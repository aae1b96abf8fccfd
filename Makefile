# The loop: make serve, make test. Everything that is fetched or built lies under build/.
MODEL ?= demo
PORT ?= 8000
ARGS ?=
BUILD ?= build
JOBS ?= $(shell nproc)

.PHONY: help serve build cuda cuda-all test test-gpu nightly asan tsan bench bench-gpu install clean
help:
	@echo 'make serve [MODEL=demo|smollm2|PATH] [PORT=8000] [ARGS=...]   install, build, serve'
	@echo 'make test      install, build, run every test that CI runs (PHALANX_NO_CUDA=1: without the CUDA plug-in)'
	@echo 'make test-gpu  install, build, run what needs a GPU (docs/gpu.md)'
	@echo 'make build     install, build'
	@echo 'make cuda [CUDA_ARCHS=90a]   the CUDA plug-in (fetches CUDA 13.0 if there is no toolkit)'
	@echo 'make asan      unit tests with address and undefined-behaviour checks'
	@echo 'make tsan      unit tests with the race detector'
	@echo 'make cuda-all  the plug-in for every architecture, in a folder of its own'
	@echo 'make nightly   the tests, both sanitizers, the long ones, every architecture'
	@echo 'make bench     the speed table of this machine'
	@echo 'make bench-gpu the speed table of its GPU'
	@echo 'make install PREFIX=DIR   a relocatable tree'

ifeq ($(MODEL),demo)
MODEL_PATH = models/demo
NAME = --served-model-name demo
else ifeq ($(MODEL),smollm2)
MODEL_PATH = $(wildcard build/deps/models/smollm2/*.gguf)
NAME = --served-model-name smollm2
else
MODEL_PATH = $(MODEL)
NAME =
endif

serve: build
ifeq ($(MODEL),smollm2)
	@scripts/setup.sh smollm2
endif
	@$(MAKE) --no-print-directory start MODEL='$(MODEL)'

.PHONY: start
start:
	@exec $(BUILD)/phalanx serve $(MODEL_PATH) $(NAME) --port $(PORT) $(ARGS)

build:
	@scripts/setup.sh build
	@test -f $(BUILD)/build.ninja || cmake -S . -B $(BUILD) -G Ninja -DCMAKE_BUILD_TYPE=Release
	@ninja -C $(BUILD) -j $(JOBS) programs

# The plug-in is a project of its own; `build` never needs a toolkit.
# cuda_plugin(TOOLKIT,FOLDER,ARCHITECTURES,WHERE THE PLUG-IN GOES)
define cuda_plugin
root=$$($(1)) && cmake -S kernels/cuda -B $(2) -G Ninja -DCMAKE_BUILD_TYPE=Release -DCUDA_ROOT="$$root" -DCUDA_ARCHS='$(3)' \
  -DPHALANX_PLUGIN_DIR='$(abspath $(4))' >/dev/null && ninja -C $(2) -j $(JOBS)
endef
CUDA_ARCHS ?= 90a
cuda:
	@$(call cuda_plugin,scripts/setup_cuda.sh,$(BUILD)/cuda,$(CUDA_ARCHS),$(BUILD))

# Every architecture that the code is written for. CUDA 13 has dropped 7.0: that one is compiled where CUDA_HOME names a CUDA 12.
CUDA_ALL_ARCHS ?= 75;80;86;89;90a;100a;120a
cuda-all:
	@$(call cuda_plugin,env -u CUDA_HOME scripts/setup_cuda.sh,$(BUILD)/cuda-all,$(CUDA_ALL_ARCHS),$(BUILD)/cuda-all)
	@if [ -n "$$CUDA_HOME" ] && "$$CUDA_HOME/bin/nvcc" --version | grep -q 'release 12\.'; then \
	  $(call cuda_plugin,scripts/setup_cuda.sh,$(BUILD)/cuda-70,70,$(BUILD)/cuda-70); \
	else echo 'not compiled: compute capability 7.0, for which CUDA_HOME must name a CUDA 12 toolkit'; fi

ifneq ($(PHALANX_NO_CUDA),)
CUDA_OF_TEST = cuda-left-out
else
CUDA_OF_TEST = cuda
endif
.PHONY: cuda-left-out programs-of-test
cuda-left-out:
	@echo '!! PHALANX_NO_CUDA is set: the CUDA plug-in is NOT built and NOT tested'

programs-of-test:
	@scripts/setup.sh test
	@test -f $(BUILD)/build.ninja || cmake -S . -B $(BUILD) -G Ninja -DCMAKE_BUILD_TYPE=Release
	@ninja -C $(BUILD) -j $(JOBS)

test: programs-of-test $(CUDA_OF_TEST)
	@build/deps/venv/bin/python tests/run.py --build $(BUILD)

# Tests of the CUDA project that need a GPU, which its own default target leaves out.
CUDA_GPU_TESTS = gemm_tiles_test
test-gpu: programs-of-test cuda
	@ninja -C $(BUILD)/cuda -j $(JOBS) $(CUDA_GPU_TESTS)
	@build/deps/venv/bin/python tests/run.py --build $(BUILD) --suites gpu

asan tsan:
	@scripts/setup.sh test
	@cmake -S . -B build/$@ -G Ninja -DCMAKE_BUILD_TYPE=RelWithDebInfo -DPHALANX_SANITIZE=$(if $(filter asan,$@),address,thread)
	@ninja -C build/$@ -j $(JOBS)
	@build/deps/venv/bin/python tests/run.py --build build/$@ --suites unit

nightly: test asan tsan cuda-all
	@build/deps/venv/bin/python tests/run.py --build $(BUILD) --suites nightly

bench-gpu: build cuda
	@python3 bench/gpu_table.py --build $(BUILD) $(ARGS)

bench:
	@scripts/setup.sh test
	@ninja -C $(BUILD) -j $(JOBS)
	@build/deps/venv/bin/python bench/table.py --build $(BUILD)

PREFIX ?= /usr/local
install: build
	@cmake --install $(BUILD) --prefix $(PREFIX)

clean:
	@rm -rf build
