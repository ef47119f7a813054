# The commands of the README. Everything runs in the checkout's .venv, which the first command makes.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: help env demo test check format bench clean

help:
	@echo "make demo    render a small camera network, ingest, index and search it; writes demo/report.html"
	@echo "make test    every test that needs no GPU"
	@echo "make check   ruff, mypy and the tests"
	@echo "make bench   accuracy on the real footage in ../shared"

env:
	@$(PYTHON) .ci/environment.py

demo: env
	@$(BIN)/python -m jobs.demo

test: env
	@$(BIN)/python -m pytest -m "not gpu and not scale"

check: env
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(MAKE) --no-print-directory test

format: env
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

bench: env
	@$(BIN)/python -m benchmarks.real_footage

clean:
	rm -rf .venv demo .pytest_cache .mypy_cache .ruff_cache .hypothesis
