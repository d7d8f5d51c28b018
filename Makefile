# `make run` and `make test` need python3 (3.11 or newer) and make, nothing else; .ci/bootstrap does the set-up.
.DEFAULT_GOAL := help
# Tests mostly wait, so more workers than cores; a file's tests stay together, for they share their processes. The
# planted bugs are whole runs, and have their own way to be a few at a time.
WORKERS ?= 4
pytest_at_once = .venv/bin/pytest -n $(WORKERS) --dist loadfile
.PHONY: help setup run test lint unit integration e2e planted bench lock clean

help: ## What can be made
	@awk -F ':.*## ' '/^[a-z0-9]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' Makefile

setup: ## Make .venv from requirements.lock; nothing to do the second time
	@sh .ci/bootstrap

run: setup ## The sea trial: 100 users trade and move money in and out, faults, verdict, report
	@.venv/bin/seatrial run

test: setup ## Everything: lint, types, architecture, unit, integration and end-to-end tests
	@$(MAKE) --no-print-directory lint
	$(pytest_at_once) tests/e2e tests/unit tests/integration
	.venv/bin/pytest tests/planted

lint: setup ## Style, types, architecture, SQL
	.venv/bin/ruff format --check .
	.venv/bin/ruff check .
	.venv/bin/mypy
	.venv/bin/lint-imports
	.venv/bin/sqlfluff lint reference_server/sql

unit: setup ## Tests without processes or database
	$(pytest_at_once) tests/unit

integration: setup ## Tests against a real PostgreSQL and a real chain
	$(pytest_at_once) tests/integration

e2e: setup ## Tests of whole runs
	$(pytest_at_once) tests/e2e

planted: setup ## Show that each invariant catches its planted bug
	.venv/bin/pytest tests/planted

bench: setup ## The trade strategies against each other
	@.venv/bin/seatrial bench

lock: setup ## Renew requirements.lock after a change in pyproject.toml; needs uv on PATH
	uv pip compile pyproject.toml --extra dev --universal --python-version 3.11 --generate-hashes \
	    --no-annotate --no-header --no-emit-index-url --no-emit-find-links -o requirements.lock

clean: ## Remove what the set-up and the tools made; runs/ stays
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache build *.egg-info
