# make bench and make test set everything up by themselves: a virtual environment in .venv, the packages, the extension.
VENV   ?= .venv
PYTHON ?= $(VENV)/bin/python
TORCH  ?= torch==2.13.0
PIP    := $(VENV)/bin/python -m pip install --quiet --disable-pip-version-check

.PHONY: help install bench test lint format clean
.DEFAULT_GOAL := help

help:
	@echo 'make install   virtual environment, packages and the compiled extension'
	@echo 'make bench     run the mixer on photographs: table, plots, CSV'
	@echo 'make test      all tests and checks'
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
	@$(PIP) --no-build-isolation --editable '.[triton,bench,test]'
	@touch $@

install: $(VENV)/installed

test: install lint
	@echo '== running the tests'
	$(PYTHON) -m pytest

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
