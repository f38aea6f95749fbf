# Two commands on a fresh machine: `make demo` and `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: help demo test unit soak contract openapi lint types imports format lock clean

help: ## what there is
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 12

$(READY): requirements.lock pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --require-hashes -r requirements.lock
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	touch $(READY)

demo: $(READY) ## start the broker on this machine with two centers and run real work
	$(BIN)/python examples/demo.py

test: lint types imports unit ## everything

unit: $(READY) ## the test suite
	$(BIN)/pytest -n 2

soak: $(READY) ## 300 jobs through each emulated platform, 5 % of its calls faulty
	BROKER_SOAK_JOBS=300 $(BIN)/pytest -n 0 tests/test_soak_*.py

contract: $(READY) ## a thousand made-up requests for each endpoint of the OpenAPI document
	BROKER_CONTRACT_EXAMPLES=1000 $(BIN)/pytest -n 2 tests/test_contract.py

openapi: $(READY) ## write openapi.json and check it
	$(BIN)/python -m tests.openapi_document openapi.json

lint: $(READY) ## style
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(READY) ## mypy --strict
	$(BIN)/mypy

imports: $(READY) ## the layers
	$(BIN)/lint-imports

format: $(READY) ## rewrite the files in the project's style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

lock: $(READY) ## write requirements.lock anew from pyproject.toml
	$(BIN)/pip install --quiet uv
	$(BIN)/uv pip compile pyproject.toml --universal --python-version 3.11 --extra test --extra postgresql \
		--extra build --generate-hashes --no-header --quiet --output-file requirements.lock

clean: ## remove what make created
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis
