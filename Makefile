# Everything one does here. Needs only Python 3.11 or newer; the rest goes into .venv and var.
PYTHON ?= python3
BIN := .venv/bin
# Most tests wait most of the time, so more workers than cores; who is done takes over from who is not (worksteal).
WORKERS ?= 4
.DEFAULT_GOAL := help
.PHONY: help serve demo test test-long check fmt bench pins clean

help: ## this list
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 12

serve: .venv/serves ## start everything: PostgreSQL, Valkey and Syros, for callers on this machine
	@SYROS_DEV=1 LOG_FORMAT=$${LOG_FORMAT:-text} exec $(BIN)/python manage.py serve

demo: .venv/serves ## a saga that goes well and one that is taken back, on a Syros of its own
	@$(BIN)/python examples/order_fulfillment/run.py --serve

test: .venv/tests ## the whole suite, against real PostgreSQL and Valkey
	$(BIN)/pytest -n $(WORKERS) $(ARGS)

test-long: .venv/tests ## the long histories: more of the same races and faults
	$(BIN)/pytest -n auto -m long $(ARGS)

check: .venv/tests ## lint, types, who imports whom, missing migrations, the published documents, the .proto files
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -W ignore::RuntimeWarning manage.py makemigrations --check --dry-run
	$(BIN)/python manage.py make_contracts --check
	$(BIN)/buf lint
	$(BIN)/python manage.py spectacular --validate --fail-on-warn --file /dev/null

fmt: .venv/tests ## format and mend what a machine can mend
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

bench: .venv/serves ## measure, beside etcd where it is installed
	$(BIN)/python -m bench

pins: .venv/tests ## write down the versions of everything below the requirements
	$(BIN)/pip freeze --exclude-editable > constraints.txt

clean: ## forget the environment and the data
	rm -rf .venv var

.venv/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Syros needs Python 3.11 or newer; set PYTHON=")'
	$(PYTHON) -m venv .venv

.venv/serves: requirements.txt constraints.txt sdks/python/pyproject.toml | .venv/bin/python
	$(BIN)/pip install --quiet --disable-pip-version-check -r requirements.txt -e ./sdks/python
	@touch $@

.venv/tests: requirements-dev.txt .venv/serves
	$(BIN)/pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	@touch $@
