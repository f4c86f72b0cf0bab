PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test lint setup clean

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
	$(BIN)/python -m pytest -n 2 --dist loadfile

lint: setup  ## style, format, types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

clean:
	rm -rf $(VENV) runs .pytest_cache .ruff_cache
