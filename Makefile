# Perigee: `make demo` installs, builds and runs on real images; `make test` tests. Everything else is listed by `make help`.

VERSION := 0.1.0
BUILD   := build
PREFIX  ?= /usr/local

# ---- what this machine has --------------------------------------------------------------------------------------------
CC      ?= gcc
CXX     ?= g++
CLANG   ?= clang-14
NVCC    := $(shell command -v nvcc 2>/dev/null)
MPICC   := $(shell command -v mpicc 2>/dev/null)
LUAJIT  := $(shell pkg-config --exists luajit 2>/dev/null && echo yes)
# A fresh machine has none of the libraries yet; `make deps` (apt) brings them, and demo and test call it when needed.
PACKAGES := gcc g++ make pkg-config luajit libluajit-5.1-dev libopenblas-openmp-dev libpng-dev libturbojpeg0-dev zlib1g-dev libdeflate-dev \
  libutf8proc-dev libedit-dev \
  lua-cjson lua-argparse lua-filesystem lua-sql-sqlite3 lua-busted lua-check gnuplot-nox \
  dataset-fashion-mnist openclipart-png tuxpaint-stamps-default
# What only tests/workbench needs: a Slurm for this machine alone, MPI (which runs on several machines need too), a
# browser, and TensorBoard from a registry into build/tensorboard.
TEST_PACKAGES := slurm-wlm munge libopenmpi-dev openmpi-bin chromium python3-venv

# ---- flags ------------------------------------------------------------------------------------------------------------
# No -ffast-math anywhere: NaN and infinity must survive. errno and traps are not read, so the vectoriser need not keep them.
WARN     := -Wall -Wextra -Wno-unused-parameter -Wno-missing-field-initializers
CPPFLAGS += -Icore -DPERIGEE_VERSION='"$(VERSION)"' -D_GNU_SOURCE
OPT      := -O3 -g1 -fno-math-errno -fno-trapping-math
CFLAGS   += -std=gnu11 $(OPT) $(WARN) -fPIC -fopenmp -fvisibility=default -pthread
BLASDIR  := $(firstword $(wildcard /usr/lib/$(shell $(CC) -dumpmachine)/openblas-openmp))
# The OpenMP flavour by its own path, so that another BLAS chosen by update-alternatives cannot bring a second pool.
# libdeflate inflates a whole PNG in half of zlib's time, and decoding is what training on files waits for.
LDLIBS   += $(if $(BLASDIR),-L$(BLASDIR) -Wl$(comma)-rpath$(comma)$(BLASDIR)) -lopenblas -lpng16 -lturbojpeg -lz -ldeflate -lutf8proc -lm
comma    := ,
CPPFLAGS += $(if $(BLASDIR),-I$(subst /lib/,/include/,$(BLASDIR)))

# A built file is a line with its name; `make V=1` shows the commands.
Q         = $(if $(V),,@echo "  $@";)

# ---- sources ----------------------------------------------------------------------------------------------------------
CORE := $(wildcard core/*.c core/ops/*.c core/io/*.c core/data/*.c core/text/*.c)
OBJ  := $(CORE:%.c=$(BUILD)/%.o)
LUA  := $(shell find lua -name '*.lua' 2>/dev/null)

.PHONY: all cpu demo test test-cuda test-workbench bench bench-cuda cuda-report lint format deps deps-test install uninstall docs clean help fuzz
all: cpu $(if $(NVCC),$(BUILD)/libperigee_cuda.so) ## build the library, the executable and, where nvcc is, the CUDA plug-in
	@echo "perigee $(VERSION): cpu$(if $(MPICC), and MPI, (no mpicc on PATH: no MPI plug-in))$(if \
	  $(NVCC), and cuda ($(NVCC_ARCHS)), (no nvcc on PATH: no CUDA plug-in))"

MPI := $(if $(MPICC),$(BUILD)/libperigee_mpi.so)
cpu: $(BUILD)/libperigee.so $(BUILD)/perigee $(BUILD)/cdef.lua $(MPI) ## build what needs no nvcc

# nodelete: LuaJIT unloads libraries before it finalises the last tensors, which still call pg_release.
$(BUILD)/libperigee.so: $(OBJ)
	$(Q)$(CC) $(CFLAGS) -shared -Wl,-z,nodelete -o $@ $(OBJ) $(LDFLAGS) $(LDLIBS)

$(BUILD)/%.o: %.c
	@mkdir -p $(@D)
	$(Q)$(CC) $(CPPFLAGS) $(CFLAGS) -MMD -MP -c -o $@ $<

# op.o lists every op; it must follow ops.def even where the dependency file is not there yet.
$(BUILD)/core/op.o: core/ops.def

# The header's slice, verbatim: there is no second copy of any declaration.
$(BUILD)/cdef.lua: core/perigee.h
	@mkdir -p $(@D)
	@{ echo 'return [===['; sed -n '/cdef-begin/,/cdef-end/p' $< | sed '1d;$$d'; echo ']===]'; } > $@

$(BUILD)/perigee: core/host/main.c
	@mkdir -p $(@D)
	$(Q)$(CC) $(CPPFLAGS) $(CFLAGS) -Wl,-E $$(pkg-config --cflags luajit) -o $@ $< $$(pkg-config --libs luajit) -ledit -lm -ldl

# Plug-ins call the core, which is already loaded when they are: it is found beside them.
CORE_LINK = -L$(BUILD) -l:libperigee.so

# ---- MPI: a plug-in beside the library, opened when mpirun or srun started the process ----------------------------------
$(BUILD)/libperigee_mpi.so: core/mpi/mpi.c | $(BUILD)/libperigee.so
	$(Q)OMPI_CC=$(CC) MPICH_CC=$(CC) $(MPICC) $(CPPFLAGS) $(CFLAGS) -MMD -MP -MF $(BUILD)/mpi.d -shared -o $@ $< \
	  $(CORE_LINK) -Wl,-rpath,'$$ORIGIN'

-include $(OBJ:.o=.d) $(BUILD)/mpi.d

# ---- CUDA: a plug-in beside the library, opened on the first use of "cuda" ----------------------------------------------
CU         := $(wildcard core/cuda/*.cu core/ops/*.cu)
# One binary for each generation from sm_75 to sm_120 that this nvcc knows (a generation runs what its first chip runs),
# and PTX of the newest for what comes later.
NVCC_KNOWN := $(if $(NVCC),$(shell $(NVCC) --list-gpu-code 2>/dev/null))
NVCC_ARCHS := $(filter $(NVCC_KNOWN),sm_75 sm_80 sm_90 sm_100 sm_120)
NVCC_LAST  := $(patsubst sm_%,%,$(lastword $(NVCC_ARCHS)))
NVCCFLAGS  := -std=c++17 -O3 -Icore -Xcompiler -fPIC,-Wall \
  $(foreach a,$(NVCC_ARCHS),-gencode arch=$(a:sm_%=compute_%),code=$(a)) \
  $(if $(NVCC_LAST),-gencode arch=compute_$(NVCC_LAST)$(comma)code=compute_$(NVCC_LAST))

$(BUILD)/cuda/%.o: %.cu $(wildcard core/cuda/*.h core/ops/*.h) core/ops.def core/op.h core/core.h core/perigee.h
	@mkdir -p $(@D)
	$(Q)$(NVCC) $(NVCCFLAGS) -c -o $@ $<

$(BUILD)/libperigee_cuda.so: $(CU:%.cu=$(BUILD)/cuda/%.o) | $(BUILD)/libperigee.so
	$(Q)$(NVCC) -shared -o $@ $^ $(CORE_LINK) -lcublas -Xlinker -rpath,'$$ORIGIN'

# ---- the simulated device: the same sources by the host's compiler, once plain and once under sanitizers -----------------
SIMT      := $(filter-out %/count.cu,$(wildcard tests/simt/*.cu))
SIMT_FLAGS = -x c++ -std=c++17 -Itests/simt $(CPPFLAGS) $(WARN) -Wno-unknown-pragmas -Wno-unused-function -fPIC -fvisibility=default -pthread
SIMT_MAKE  = $(CU:%.cu=$(BUILD)/$(1)/%.o) $(SIMT:%.cu=$(BUILD)/$(1)/%.o)
SIMT_SAN  := -O1 -g1 -fno-omit-frame-pointer -fsanitize=address,undefined -fno-sanitize-recover=undefined -fno-sanitize=vptr

$(BUILD)/simt/%.o: %.cu
	@mkdir -p $(@D)
	$(Q)$(CXX) $(SIMT_FLAGS) -O2 -g1 -MMD -MP -c -o $@ $<

$(BUILD)/simt-san/%.o: %.cu
	@mkdir -p $(@D)
	$(Q)$(CXX) $(SIMT_FLAGS) $(SIMT_SAN) -MMD -MP -c -o $@ $<

$(BUILD)/libperigee_cuda_sim.so: $(call SIMT_MAKE,simt) | $(BUILD)/libperigee.so
	$(Q)$(CXX) -shared -o $@ $^ $(CORE_LINK) $(LDLIBS) -Wl,-rpath,'$$ORIGIN'

$(BUILD)/simt-san/libperigee_cuda_sim.so: $(call SIMT_MAKE,simt-san) | $(BUILD)/libperigee.so
	$(Q)$(CXX) -shared $(SIMT_SAN) -o $@ $^ $(CORE_LINK) $(LDLIBS) -Wl,-rpath,'$$ORIGIN/..'

# The simulator alone, with a kernel for each fault that it must catch.
SIMT_ONLY = $(SIMT:%.cu=$(BUILD)/$(1)/%.o) $(BUILD)/$(1)/tests/simt/planted/planted.o
$(BUILD)/simt/planted: $(call SIMT_ONLY,simt)
	$(Q)$(CXX) -o $@ $^ $(LDLIBS)

$(BUILD)/simt-san/planted: $(call SIMT_ONLY,simt-san)
	$(Q)$(CXX) $(SIMT_SAN) -o $@ $^ $(LDLIBS)

# Once more for the cost report, counting: -fsanitize=thread puts a call before each load and store of the kernel files,
# and tests/simt/count.cu answers it in the place of that sanitizer. A load of 16 bytes has to stay one.
SIMT_COUNT := -DSIMT_COUNT -O2 -g1
SIMT_CALLS := -fsanitize=thread -fno-tree-sra -fno-tree-vectorize
COUNTED     = $(call SIMT_MAKE,simt-count) $(BUILD)/simt-count/tests/simt/count.o

$(BUILD)/simt-count/tests/%.o: tests/%.cu
	@mkdir -p $(@D)
	$(Q)$(CXX) $(SIMT_FLAGS) $(SIMT_COUNT) -MMD -MP -c -o $@ $<

$(BUILD)/simt-count/%.o: %.cu
	@mkdir -p $(@D)
	$(Q)$(CXX) $(SIMT_FLAGS) $(SIMT_COUNT) $(SIMT_CALLS) -MMD -MP -c -o $@ $<

$(BUILD)/simt-count/libperigee_cuda_sim.so: $(COUNTED) | $(BUILD)/libperigee.so
	$(Q)$(CXX) -shared -Wl,-z,defs -o $@ $^ $(CORE_LINK) $(LDLIBS) -ldl -Wl,-rpath,'$$ORIGIN/..'

-include $(patsubst %.o,%.d,$(call SIMT_MAKE,simt) $(call SIMT_MAKE,simt-san) $(COUNTED) \
  $(call SIMT_ONLY,simt) $(call SIMT_ONLY,simt-san))

# What ptxas says of every kernel, for an A100 and an H100; nvcc writes it to stderr.
PTXAS := $(if $(NVCC),$(CU:%.cu=$(BUILD)/ptxas/%.txt))
$(BUILD)/ptxas/%.txt: %.cu $(wildcard core/cuda/*.h core/ops/*.h)
	@mkdir -p $(@D)
	$(Q)$(NVCC) -std=c++17 -O3 -Icore -fatbin $(foreach a,80 90,-gencode arch=compute_$(a)$(comma)code=sm_$(a)) \
	  -Xptxas -v -o $(@:.txt=.fatbin) $< 2> $@.part || { cat $@.part >&2; exit 1; }; mv $@.part $@

# ---- the C tests: the whole core once more, under sanitizers -------------------------------------------------------------
SANITIZE := -O1 -g -fsanitize=address,undefined -fno-sanitize-recover=undefined -DPG_SANITIZE
SANOBJ   := $(CORE:%.c=$(BUILD)/san/%.o)

$(BUILD)/san/%.o: %.c
	@mkdir -p $(@D)
	$(Q)$(CC) $(CPPFLAGS) $(CFLAGS) $(SANITIZE) -MMD -MP -c -o $@ $<

$(BUILD)/san/core/op.o: core/ops.def

$(BUILD)/test_core $(BUILD)/test_data: $(BUILD)/test_%: tests/core/test_%.c $(SANOBJ)
	$(Q)$(CC) $(CPPFLAGS) $(CFLAGS) $(SANITIZE) -o $@ $^ $(LDFLAGS) $(LDLIBS)

# The fuzzers' committed inputs once more; the readers of PNG and .npz as the fuzzers see them, where a wrong checksum
# ends nothing.
$(BUILD)/test_fuzz: tests/fuzz/replay.c tests/fuzz/fuzz_io.c core/io/png.c core/io/png_quick.c core/io/npz.c \
    $(filter-out %/png.o %/png_quick.o %/npz.o,$(SANOBJ))
	$(Q)$(CC) $(CPPFLAGS) $(CFLAGS) $(SANITIZE) -DFUZZING_BUILD_MODE_UNSAFE_FOR_PRODUCTION -o $@ $^ $(LDFLAGS) $(LDLIBS)

-include $(SANOBJ:.o=.d)

TESTS     := $(BUILD)/test_core $(BUILD)/test_data $(BUILD)/test_fuzz
SIMULATED := $(foreach part,libperigee_cuda_sim.so simt/planted simt-san/libperigee_cuda_sim.so simt-san/planted,$(BUILD)/$(part))
COUNTING  := $(BUILD)/simt-count/libperigee_cuda_sim.so
CUDA_LUA  := LUA_PATH='lua/?.lua;lua/?/init.lua;tests/?.lua;;'
PARALLEL  := -j$(shell nproc 2>/dev/null || echo 1)

# ---- what people run --------------------------------------------------------------------------------------------------
deps: WANTED = $(PACKAGES)
deps-test: WANTED = $(PACKAGES) $(TEST_PACKAGES)
deps: ## install what Perigee needs (apt; root or sudo)
deps-test: ## that, and what the tests of the workbench need
deps deps-test:
	@missing=; for p in $(WANTED); do dpkg -s $$p >/dev/null 2>&1 || missing="$$missing $$p"; done; \
	if [ -n "$$missing" ]; then echo "installing:$$missing"; sudo=; [ "$$(id -u)" = 0 ] || sudo=sudo; \
	  $$sudo apt-get update -q && $$sudo env DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends $$missing; fi
	@[ $@ = deps ] || [ -x $(BUILD)/tensorboard/bin/python ] || { python3 -m venv $(BUILD)/tensorboard && \
	  $(BUILD)/tensorboard/bin/pip install -q tensorboard; }

demo: deps ## fine-tune on real images, print the table, leave the pictures
	@$(MAKE) --no-print-directory $(PARALLEL) cpu
	$(BUILD)/perigee run recipes/end_to_end.lua method=naive,proxy_fda --out runs/demo

test: deps ## every test; the last line is "N passed, N failed"
	@$(MAKE) --no-print-directory $(PARALLEL) all $(TESTS) $(SIMULATED)
	@tests/run.sh core cuda workbench

test-cuda: $(if $(filter real,$(CUDA)),all,cpu $(SIMULATED)) ## the CUDA tests on the simulated device; CUDA=real on this machine's GPU
	@tests/run.sh cuda

test-workbench: cpu ## sweeps under fire and through Slurm, reports in a browser; skips what is not installed (make deps-test)
	@tests/run.sh workbench

bench: all ## measure, and print one table of ratios
	@tests/bench/run.sh

cuda-report: ## what the CUDA kernels cost, told without a GPU: docs/cuda-report.md
	@$(MAKE) --no-print-directory $(PARALLEL) cpu $(COUNTING) $(PTXAS)
	@$(CUDA_LUA) PERIGEE_CUDA=$(COUNTING) luajit tests/cuda/report.lua $(PTXAS) > $(BUILD)/cuda-report.md
	@mv $(BUILD)/cuda-report.md docs/cuda-report.md && cat docs/cuda-report.md

bench-cuda: all ## time the CUDA kernels on this machine's GPU against what an H100 could do
	@$(CUDA_LUA) luajit tests/cuda/bench.lua

fuzz: ## a million executions of each fuzzer (needs clang)
	@for t in png pixels jpeg idx idxgz npy npz values mat matz ppm bytes text; do tests/fuzz/run.sh $$t 1000000 || exit 1; done

lint: ## clang-format and luacheck
	clang-format --dry-run -Werror core/*.[ch] core/*/*.[ch] core/*/*.cu tests/simt/*.cu tests/simt/*/*.cu
	luacheck -q lua recipes tests docs experiments

format: ## clang-format in place
	clang-format -i core/*.[ch] core/*/*.[ch] core/*/*.cu tests/simt/*.cu tests/simt/*/*.cu

docs: cpu ## regenerate the references of ops and of the Lua interface
	$(BUILD)/perigee run docs/generate_ops.lua --out $(BUILD)/docs-run/ops --quiet
	$(BUILD)/perigee run docs/generate_api.lua --out $(BUILD)/docs-run/api --quiet

SHARE := $(DESTDIR)$(PREFIX)/share/perigee
install: all ## install under PREFIX (default /usr/local)
	rm -rf $(SHARE)
	install -D $(BUILD)/perigee $(DESTDIR)$(PREFIX)/bin/perigee
	install -D $(BUILD)/libperigee.so $(SHARE)/libperigee.so
	install -D -m 644 $(BUILD)/cdef.lua $(SHARE)/cdef.lua
	$(if $(NVCC),install -D $(BUILD)/libperigee_cuda.so $(SHARE)/libperigee_cuda.so)
	$(if $(MPICC),install -D $(BUILD)/libperigee_mpi.so $(SHARE)/libperigee_mpi.so)
	cp -r lua recipes $(SHARE)/
	chmod -R u+w,a+rX $(SHARE)

# Under a DESTDIR the folders that install made go too, where nothing else is in them.
uninstall: ## remove what install put there
	rm -rf $(DESTDIR)$(PREFIX)/bin/perigee $(SHARE)
	$(if $(DESTDIR),cd $(DESTDIR) && rmdir -p --ignore-fail-on-non-empty $(PREFIX:/%=%)/bin $(PREFIX:/%=%)/share)

clean: ## remove what was built
	rm -rf $(BUILD)

help: ## this list
	@grep -E '^[a-z-]+:.*##' Makefile | sed -E 's/:.*## /\t/' | expand -t 16
