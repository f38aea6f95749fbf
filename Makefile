# Two commands on a fresh machine: `make demo` and `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: help demo test unit soak chaos contract openapi lint types imports audit format lock install uninstall clean

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

unit: $(READY) ## the test suite; more workers than processors, since real daemons are waited for
	$(BIN)/pytest -n 4 --dist worksteal

soak: $(READY) ## 300 jobs through each emulated platform, 5 % of its calls faulty
	BROKER_SOAK_JOBS=300 $(BIN)/pytest -n 0 tests/test_soak_*.py

chaos: $(READY) ## the daemon killed a thousand times, at every point of its ways
	$(BIN)/python -m tests.chaos --kills 1000

contract: $(READY) ## a thousand made-up requests for each endpoint of the OpenAPI document
	BROKER_CONTRACT_EXAMPLES=1000 $(BIN)/pytest -n 2 tests/test_contract.py

openapi: $(READY) ## write openapi.json and check it
	$(BIN)/python -m tests.openapi_document openapi.json

lint: $(READY) ## style
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(READY) ## mypy --strict
	$(BIN)/mypy

audit: $(READY) ## known vulnerabilities of what the locks name, where the network leads to a service that knows
	$(BIN)/python .ci/audit.py

imports: $(READY) ## the layers
	$(BIN)/lint-imports

format: $(READY) ## rewrite the files in the project's style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

lock: $(READY) ## write the locks anew from pyproject.toml: everything, and what the service needs
	$(BIN)/pip install --quiet uv
	$(BIN)/uv pip compile pyproject.toml --universal --python-version 3.11 --extra test --extra postgresql \
		--extra build --generate-hashes --no-header --quiet --output-file requirements.lock
	$(BIN)/uv pip compile pyproject.toml --universal --python-version 3.11 --extra postgresql --extra build \
		--constraint requirements.lock --generate-hashes --no-header --quiet --output-file requirements-service.lock

PREFIX ?= /opt/computing-broker
DOC := /usr/local/share/doc/computing-broker

install: ## as root: the broker in PREFIX, its service, the service's user, a first configuration
	@runuser -u nobody -- $$(command -v $(PYTHON)) -c 'import sys; assert sys.version_info >= (3, 11)' || { \
		echo "PYTHON=$(PYTHON) must be a Python 3.11 or newer that every user may run, such as /usr/bin/python3"; exit 2; }
	$(PYTHON) -m venv $(PREFIX)
	$(PREFIX)/bin/pip install --quiet --disable-pip-version-check --require-hashes -r requirements-service.lock
	$(PREFIX)/bin/pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --force-reinstall .
	ln -sfn $(PREFIX)/bin/broker /usr/local/bin/broker
	install -d /etc/systemd/system /etc/sysusers.d /etc/tmpfiles.d $(DOC)
	install -m 644 config/broker.service /etc/systemd/system/broker.service
	install -m 644 config/systemd/broker.sysusers.conf /etc/sysusers.d/broker.conf
	install -m 644 config/systemd/broker.tmpfiles.conf /etc/tmpfiles.d/broker.conf
	cp -r docs/. $(DOC)
	systemd-sysusers broker.conf
	systemd-tmpfiles --create broker.conf
	test -e /etc/broker/broker.toml || { \
		sed -E 's/^(url|data_dir) = /#&/; s/^work_dir = .*/work_dir = "\/var\/lib\/broker\/work"/' config/broker.toml > /etc/broker/broker.toml && \
		chgrp broker /etc/broker/broker.toml && chmod 640 /etc/broker/broker.toml; }
	if [ -d /run/systemd/system ]; then systemctl daemon-reload; fi
	@echo "next: edit /etc/broker/broker.toml, then: systemctl enable --now broker"

uninstall: ## as root: take away what install put in place; configuration, state and user stay
	if [ -d /run/systemd/system ]; then systemctl disable --now broker || true; fi
	rm -rf $(PREFIX) $(DOC)
	rm -f /usr/local/bin/broker /etc/systemd/system/broker.service /etc/sysusers.d/broker.conf /etc/tmpfiles.d/broker.conf
	if [ -d /run/systemd/system ]; then systemctl daemon-reload; fi

clean: ## remove what make created
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis
