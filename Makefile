# Two commands on a fresh machine: `make demo` and `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: help demo test unit soak chaos contract openapi lint types imports audit format lock install program files unpackaged uninstall deb clean

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
# The folder that stands for the root of the machine while a package is made; empty: the machine itself.
DESTDIR ?=
# Folders for what an administrator installs; those of a package are in `deb`.
USR := /usr/local
SYSTEMD := /etc
DOC = $(USR)/share/doc/computing-broker

install: program files ## as root: the broker in PREFIX, its service, the service's user, a first configuration
ifeq ($(DESTDIR),)
	systemd-sysusers broker.conf
	systemd-tmpfiles --create broker.conf
	if [ -d /run/systemd/system ]; then systemctl daemon-reload; fi
	@echo "next: edit /etc/broker/broker.toml, then: systemctl enable --now broker"
endif

program: unpackaged # an environment with the broker and the versions it was tested with
ifeq ($(DESTDIR),)
	@runuser -u nobody -- $$(command -v $(PYTHON)) -c 'import sys; assert sys.version_info >= (3, 11)' || { \
		echo "PYTHON=$(PYTHON) must be a Python 3.11 or newer that every user may run, such as /usr/bin/python3"; exit 2; }
endif
	$(PYTHON) -m venv $(DESTDIR)$(PREFIX)
	$(DESTDIR)$(PREFIX)/bin/pip install --quiet --disable-pip-version-check --require-hashes -r requirements-service.lock
	$(DESTDIR)$(PREFIX)/bin/pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --force-reinstall .

files: unpackaged # what stands around the program; a configuration that is there stays
	install -d $(addprefix $(DESTDIR),$(USR)/bin $(DOC) $(SYSTEMD)/systemd/system $(SYSTEMD)/sysusers.d $(SYSTEMD)/tmpfiles.d)
	install -d -m 750 $(DESTDIR)/etc/broker
	ln -sfn $(PREFIX)/bin/broker $(DESTDIR)$(USR)/bin/broker
	sed 's|/usr/local/|$(USR)/|' config/broker.service > $(DESTDIR)$(SYSTEMD)/systemd/system/broker.service
	chmod 644 $(DESTDIR)$(SYSTEMD)/systemd/system/broker.service
	install -m 644 config/systemd/broker.sysusers.conf $(DESTDIR)$(SYSTEMD)/sysusers.d/broker.conf
	install -m 644 config/systemd/broker.tmpfiles.conf $(DESTDIR)$(SYSTEMD)/tmpfiles.d/broker.conf
	cp -r docs/. $(DESTDIR)$(DOC)
	test -e $(DESTDIR)/etc/broker/broker.toml || { umask 027 && \
		sed -E 's/^(url|data_dir) = /#&/; s/^work_dir = .*/work_dir = "\/var\/lib\/broker\/work"/' config/broker.toml > $(DESTDIR)/etc/broker/broker.toml; }

unpackaged:
	@test -n "$(DESTDIR)" || test ! -e /usr/lib/systemd/system/broker.service || { \
		echo "the broker of a Debian package is here, which only apt may change or remove"; exit 2; }

uninstall: unpackaged ## as root: take away what install put in place; configuration, state and user stay
	if [ -d /run/systemd/system ]; then systemctl disable --now broker || true; fi
	rm -rf $(PREFIX) $(DOC)
	rm -f $(USR)/bin/broker $(SYSTEMD)/systemd/system/broker.service $(SYSTEMD)/sysusers.d/broker.conf $(SYSTEMD)/tmpfiles.d/broker.conf
	if [ -d /run/systemd/system ]; then systemctl daemon-reload; fi

# -z1: compressed better it is a sixth smaller and takes minutes.
deb: ## dist/computing-broker_VERSION_ARCHITECTURE.deb, for this release of Debian
	rm -rf build/deb
	$(MAKE) install DESTDIR=$(CURDIR)/build/deb PYTHON=/usr/bin/python3 PREFIX=/opt/computing-broker USR=/usr SYSTEMD=/usr/lib
	packaging/build-deb build/deb $$(sed -n 's/^__version__ = "\(.*\)"/\1/p' broker/__init__.py) dist -z1

clean: ## remove what make created
	rm -rf $(VENV) build dist .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis
