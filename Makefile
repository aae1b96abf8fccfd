# The loop: make serve, make test. Everything that is fetched or built lies under build/.
MODEL ?= demo
PORT ?= 8000
ARGS ?=
BUILD ?= build
JOBS ?= $(shell nproc)

.PHONY: help serve build cuda test nightly asan tsan bench install clean
help:
	@echo 'make serve [MODEL=demo|smollm2|PATH] [PORT=8000] [ARGS=...]   install, build, serve'
	@echo 'make test      install, build, run every test that CI runs'
	@echo 'make build     install, build'
	@echo 'make cuda [CUDA_ARCHS=90a]   the CUDA plug-in (fetches CUDA 13.0 if there is no toolkit)'
	@echo 'make asan      unit tests with address and undefined-behaviour checks'
	@echo 'make tsan      unit tests with the race detector'
	@echo 'make nightly   the tests, both sanitizers and the long ones'
	@echo 'make bench     the speed table of this machine'
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
CUDA_ARCHS ?= 90a
cuda:
	@root=$$(scripts/setup_cuda.sh) && cmake -S kernels/cuda -B $(BUILD)/cuda -G Ninja -DCMAKE_BUILD_TYPE=Release -DCUDA_ROOT="$$root" \
	  -DCUDA_ARCHS='$(CUDA_ARCHS)' -DPHALANX_PLUGIN_DIR='$(abspath $(BUILD))' >/dev/null
	@ninja -C $(BUILD)/cuda -j $(JOBS)

test:
	@scripts/setup.sh test
	@test -f $(BUILD)/build.ninja || cmake -S . -B $(BUILD) -G Ninja -DCMAKE_BUILD_TYPE=Release
	@ninja -C $(BUILD) -j $(JOBS)
	@build/deps/venv/bin/python tests/run.py --build $(BUILD)

asan tsan:
	@scripts/setup.sh test
	@cmake -S . -B build/$@ -G Ninja -DCMAKE_BUILD_TYPE=RelWithDebInfo -DPHALANX_SANITIZE=$(if $(filter asan,$@),address,thread)
	@ninja -C build/$@ -j $(JOBS)
	@build/deps/venv/bin/python tests/run.py --build build/$@ --suites unit

nightly: test asan tsan
	@build/deps/venv/bin/python tests/run.py --build $(BUILD) --suites nightly

bench:
	@scripts/setup.sh test
	@ninja -C $(BUILD) -j $(JOBS)
	@build/deps/venv/bin/python bench/table.py --build $(BUILD)

PREFIX ?= /usr/local
install: build
	@cmake --install $(BUILD) --prefix $(PREFIX)

clean:
	@rm -rf build
