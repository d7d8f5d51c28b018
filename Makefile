# `make run` and `make test` need python3 (3.11 or newer) and make, nothing else; .ci/bootstrap does the set-up.
.DEFAULT_GOAL := help
.PHONY: help setup run test lint unit integration e2e planted bench lock clean

help: ## What can be made
	@awk -F ':.*## ' '/^[a-z0-9]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' Makefile

setup: ## Make .venv from requirements.lock; nothing to do the second time
	@sh .ci/bootstrap

run: setup ## The sea trial: 100 users trade and move money in and out, faults, verdict, report
	@.venv/bin/seatrial run

test: setup ## Everything: lint, types, architecture, unit, integration and end-to-end tests
	@$(MAKE) --no-print-directory lint
	.venv/bin/pytest

lint: setup ## Style, types, architecture, SQL
	.venv/bin/ruff format --check .
	.venv/bin/ruff check .
	.venv/bin/mypy
	.venv/bin/lint-imports
	.venv/bin/sqlfluff lint reference_server/sql

unit: setup ## Tests without processes or database
	.venv/bin/pytest tests/unit

integration: setup ## Tests against a real PostgreSQL
	.venv/bin/pytest tests/integration

e2e: setup ## Tests of whole runs
	.venv/bin/pytest tests/e2e

planted: setup ## Show that each invariant catches its planted bug
	.venv/bin/pytest tests/planted

bench: setup ## The trade strategies against each other
	@.venv/bin/seatrial bench

lock: setup ## Renew requirements.lock after a change in pyproject.toml; needs uv on PATH
	uv pip compile pyproject.toml --extra dev --universal --python-version 3.11 --generate-hashes \
	    --no-annotate --no-header --no-emit-index-url --no-emit-find-links -o requirements.lock

clean: ## Remove what the set-up and the tools made; runs/ stays
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache build *.egg-info
