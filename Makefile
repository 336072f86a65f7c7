# make bench and make test set everything up by themselves: a virtual environment in .venv, the packages, the extension.
VENV   ?= .venv
PYTHON ?= $(VENV)/bin/python
TORCH  ?= torch==2.13.0

.PHONY: install bench test lint format clean
.DEFAULT_GOAL := help

help:
	@echo 'make install   virtual environment, packages and the compiled extension'
	@echo 'make bench     run the mixer on photographs: table, plots, CSV'
	@echo 'make test      all tests and checks'
	@echo 'make lint      ruff, mypy, clang-format, import-linter'
	@echo 'make format    rewrite the sources in house style'
	@echo 'make clean     remove what was built'

SOURCES := setup.py pyproject.toml $(shell find csrc -type f)
INSTALLED := $(VENV)/installed

$(VENV)/packages: pyproject.toml
	@echo '== setting up $(VENV) (PyTorch and tools; some minutes the first time)'
	test -x $(VENV)/bin/python || python3 -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check '$(TORCH)' 'setuptools>=77' wheel ninja pybind11
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check $$($(VENV)/bin/python -c "import tomllib; \
	  e = tomllib.load(open('pyproject.toml', 'rb'))['project']['optional-dependencies']; \
	  print(' '.join(r.split(';')[0].strip().replace(' ', '') for k in ('triton', 'bench', 'test') for r in e[k]))")
	@touch $@

$(INSTALLED): $(VENV)/packages $(SOURCES)
	@echo '== building the extension'
	$(PYTHON) -m pip install --quiet --disable-pip-version-check --no-build-isolation --no-deps --editable .
	@touch $@

install: $(INSTALLED)

test: install lint
	@echo '== running the tests'
	$(PYTHON) -m pytest

lint: $(VENV)/packages
	@echo '== checking style, types and the direction of imports'
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .
	$(PYTHON) -m mypy
	$(VENV)/bin/lint-imports
	$(VENV)/bin/clang-format --dry-run --Werror $$(git ls-files '*.cpp' '*.h' '*.cu' '*.cuh')

format: $(VENV)/packages
	$(PYTHON) -m ruff check --fix .
	$(PYTHON) -m ruff format .
	$(VENV)/bin/clang-format -i $$(git ls-files '*.cpp' '*.h' '*.cu' '*.cuh')

clean:
	rm -rf $(VENV) build dist out *.egg-info affnet_kernels/_C.*
