PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Large pages: a tenth faster on CPUs, as the kernel hands out fewer. Other systems ignore it.
export GLIBC_TUNABLES ?= glibc.malloc.hugetlb=1
PAGES := jcmr.serve jcmr.losses jcmr.ops jcmr.eval.metrics jcmr.core

.PHONY: demo test lint docs setup clean

setup: $(VENV)/installed  ## the virtual environment with everything that development needs

$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "jcmr needs Python 3.11 or newer: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet -c constraints.txt -e '.[dev]'
	touch $@

demo: setup  ## train PCME on the embedded data, print the metrics, write report pictures
	$(BIN)/python -m jcmr.launch --config=configs/pcme_scenes.py --workdir=runs/pcme_scenes

test: setup  ## every test
	$(BIN)/python -m pytest -n 2 --dist worksteal

lint: setup  ## style, format, types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

docs: setup  ## pages of the public modules, in site/; a warning is an error
	$(BIN)/python -W error -m pdoc --docformat google --output-directory site $(PAGES)

clean:
	rm -rf $(VENV) runs site .pytest_cache .ruff_cache
