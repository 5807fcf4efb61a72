# One command for each thing; every target sets up what it needs. `make help` lists them.
VENV ?= .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
SOURCES := setup.cfg pyproject.toml constraints.txt tools/setup_venv.sh $(wildcard setup.py basicsr_classpruning/kernels/csrc/*)

.PHONY: help demo test lint docs coverage package reliability bench sanitize tables clean
.DEFAULT_GOAL := help

help: ## show this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

$(INSTALLED): $(SOURCES)
	tools/setup_venv.sh $(VENV)

demo: $(INSTALLED) ## prune a small network of the zoo, train its candidates on scikit-image's photographs, compare
	$(BIN)/python tools/demo.py

test: $(INSTALLED) ## run the tests
	$(BIN)/python -m pytest -n 2 --dist loadfile

reliability: $(INSTALLED) ## try to lose, corrupt and break in, for half an hour; writes docs/reliability.md
	$(BIN)/python tools/reliability/run.py

lint: $(INSTALLED) ## check format, style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: $(INSTALLED) ## build the documentation site into site/, links checked
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

coverage: $(INSTALLED) ## run the tests and say which lines of the package they miss; at least 90 % are run
	$(BIN)/python -m pytest -n 2 --dist loadfile --cov --cov-report=term-missing:skip-covered --cov-fail-under=90

package: $(INSTALLED) ## build sdist and wheel, install the wheel into a fresh environment, use it
	tools/check_package.sh $(VENV)

bench: $(INSTALLED) ## measure the kernels (20 minutes on an idle machine), rewrite their tables
	$(BIN)/python tools/benchmark_kernels.py layers --json docs/results/kernels_layers.json
	$(BIN)/python tools/benchmark_kernels.py networks --json docs/results/kernels_networks.json
	$(BIN)/python tools/benchmark_int8.py layers --json docs/results/int8_layers.json
	$(BIN)/python tools/benchmark_int8.py networks --json docs/results/int8_networks.json
	$(BIN)/python -m tools.pages kernels speed

tables: $(INSTALLED) ## write all that is generated in the documentation, from the results that are kept
	$(BIN)/python -m tools.pages

sanitize: $(INSTALLED) ## run the kernel tests under AddressSanitizer and UndefinedBehaviorSanitizer
	PYTHON=$(BIN)/python tools/asan_kernels.sh

clean: ## remove what was built and installed, not what was trained
	rm -rf $(VENV) build dist site *.egg-info
