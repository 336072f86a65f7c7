# make bench and make test set everything up by themselves: a virtual environment in .venv, the packages, the extension.
VENV   ?= .venv
PYTHON ?= $(VENV)/bin/python
TORCH  ?= torch==2.13.0
BENCH_OUT ?= out/bench
PIP    := $(VENV)/bin/python -m pip install --quiet --disable-pip-version-check

.PHONY: help install bench tables comparison pictures cpu-table gpu gpu-table gpu-rehearsal commit-file compile-check test test-triton-versions \
        test-timm test-cuda-build test-export export-table lint format clean
.DEFAULT_GOAL := help

help:
	@echo 'make install   virtual environment, packages and the compiled extension'
	@echo 'make bench     run the mixer and the networks on photographs: tables, plots, CSV'
	@echo 'make cpu-table measure this CPU for README: its CSV in benchmarks/results, and the tables'
	@echo 'make tables    README tables from the CSV files in benchmarks/results'
	@echo 'make comparison   train one network with each of five mixers: accuracy against cost'
	@echo 'make pictures  README pictures of what the filter sees'
	@echo 'make gpu OUT=dir   all the evidence that a CUDA device can give in nine minutes, with the python3 at hand'
	@echo 'make gpu-rehearsal   every step of make gpu on this CPU, in a copy of the tree without .git'
	@echo 'make commit-file   write COMMIT, for a tree that travels to a GPU without .git'
	@echo 'make compile-check   registers, spills and shared memory of every GPU kernel, without a GPU'
	@echo 'make test      all tests and checks'
	@echo 'make test-triton-versions   the Triton launcher under each supported version of Triton, without a GPU'
	@echo 'make test-timm   the networks in timm and torchvision, with a PyTorch that these support: our tests, and those of timm'
	@echo 'make test-cuda-build   the extension for CUDA, compiled, imported and tested without a GPU (needs nvcc)'
	@echo 'make test-export   every format that export writes, run by its own runtime'
	@echo 'make export-table  the published networks in every format: errors, sizes, latencies'
	@echo 'make lint      ruff, mypy, clang-format, import-linter'
	@echo 'make format    rewrite the sources in house style'
	@echo 'make clean     remove what was built'

# What the build needs comes first: the extension is compiled against the PyTorch that is installed.
$(VENV)/torch:
	@echo '== setting up $(VENV): $(TORCH) and build tools (some minutes the first time)'
	@test -x $(VENV)/bin/python || python3 -m venv $(VENV)
	@$(PIP) '$(TORCH)' 'setuptools>=77' wheel ninja pybind11
	@touch $@

$(VENV)/installed: $(VENV)/torch setup.py pyproject.toml $(shell find csrc -type f)
	@echo '== compiling the extension and installing the tools of benchmarks and tests'
	@AFFNET_REQUIRE_EXTENSION=1 $(PIP) --no-build-isolation --editable '.[triton,bench,test]'
	@touch $@

install: $(VENV)/installed

bench: install
	@echo '== measuring the mixer and the networks on photographs (about five minutes)'
	@$(PYTHON) -m benchmarks run --out $(BENCH_OUT) --limit 270 --report

# Takes about half an hour on an idle machine, and needs a checkout without changes: the CSV names its commit.
cpu-table: install
	@$(PYTHON) -m benchmarks run default relu cliffs networks-compiled networks-mixers --device cpu \
	  --compile-seconds 1200 --out out/cpu-table
	@$(PYTHON) -m benchmarks keep out/cpu-table
	@$(PYTHON) -m benchmarks readme

# About twenty minutes on an idle machine; goes on where it was interrupted.
comparison: install
	@OMP_NUM_THREADS=1 $(PYTHON) -m benchmarks.trained --data digits photos --seeds 3 --epochs 4 --jobs 2 --out out/trained

# README's pictures that come from a command of the package.
pictures: install
	@photographs=$$($(PYTHON) -c 'import sklearn.datasets as d; print(d.__path__[0])')/images && \
	  $(PYTHON) -m affnet_kernels show $$photographs/flower.jpg --position 0.4,0.6 --out benchmarks/results/filters.png

tables gpu-table: install
	@$(PYTHON) -m benchmarks readme

# Everything here runs with the python3 at hand and its torch: a GPU machine may have no network and no tools.
gpu:
	@test -n '$(OUT)' || { echo 'usage: make gpu OUT=dir' >&2; exit 2; }
	@python3 -m benchmarks gpu '$(OUT)'

commit = git describe --always --abbrev=12 --exclude='*' --dirty=+changes
commit-file:
	@commit=$$($(commit)) && echo "$$commit" > COMMIT && echo "COMMIT: $$commit"

# The tree as it travels to such a machine: what git tracks or would track. The extension joins it in the build's step.
REHEARSAL ?= build/gpu-rehearsal
gpu-rehearsal: install
	@rm -rf $(REHEARSAL) && mkdir -p $(REHEARSAL)/tree
	@git ls-files -z --cached --others --exclude-standard | tar --null --ignore-failed-read -T - -cf - \
	  | tar -xf - -C $(REHEARSAL)/tree
	@$(commit) > $(REHEARSAL)/tree/COMMIT
	@python=$(abspath $(PYTHON)) prebuilt=$(abspath affnet_kernels) && cd $(REHEARSAL)/tree && \
	  AFFNET_PREBUILT=$$prebuilt OMP_NUM_THREADS=1 $$python -m benchmarks gpu ../out --stand-in

test: install lint
	@echo '== running the tests'
	OMP_NUM_THREADS=1 $(PYTHON) -m pytest --numprocesses 2 --dist loadgroup

# From Triton's compiler and from nvcc.
compile-check: install
	@$(PYTHON) -m benchmarks.static.compile_check

# The real compiler and launcher on a stand-in for the driver, under each version that GPU machines have.
test-triton-versions: install
	@$(PYTHON) -m tests.triton_versions

test-timm:
	@tests/timm.sh

test-cuda-build:
	@tests/cuda_build.sh

# The packages are large and pin others, so they get an environment of their own, with the same PyTorch as the extension.
EXPORT_VENV ?= .venv-export
EXPORT_PIP  := $(EXPORT_VENV)/bin/python -m pip install --quiet --disable-pip-version-check
test-export: install
	@echo '== setting up $(EXPORT_VENV): $(TORCH) and the runtimes (2 GB, some minutes the first time)'
	@test -x $(EXPORT_VENV)/bin/python || python3 -m venv $(EXPORT_VENV)
	@$(EXPORT_PIP) '$(TORCH)'
	@$(EXPORT_PIP) '$(TORCH)' numpy pytest $$(sed -n 's/^export = \[\(.*\)\]/\1/p' pyproject.toml | tr -d '",')
	AFFNET_TEST_AOTI=1 OMP_NUM_THREADS=1 $(EXPORT_VENV)/bin/python -m pytest tests/test_export.py tests/test_dense_export.py tests/test_quantization.py

export-table: test-export
	OMP_NUM_THREADS=1 $(EXPORT_VENV)/bin/python -m tests.export_networks

lint: install
	@echo '== checking style, types and the direction of imports'
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .
	$(PYTHON) -m mypy
	$(VENV)/bin/lint-imports
	$(VENV)/bin/clang-format --dry-run --Werror $$(git ls-files '*.cpp' '*.h' '*.cu' '*.cuh')

format: install
	$(PYTHON) -m ruff check --fix .
	$(PYTHON) -m ruff format .
	$(VENV)/bin/clang-format -i $$(git ls-files '*.cpp' '*.h' '*.cu' '*.cuh')

clean:
	rm -rf $(VENV) build dist out *.egg-info affnet_kernels/_C.*
