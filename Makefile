# All that a fresh machine needs: `make demo` and `make test`. See README.md.
MAKEFLAGS += --no-print-directory
PYTHON := .venv/bin/python
# Tiers that must pass at least one test; empty: a tier that this machine cannot run is skipped, and says why.
REQUIRE ?=

.DEFAULT_GOAL := help
.PHONY: help demo test check package docs site bench release format clean

help: ## this list
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 12

demo: ## a real Open WebUI with the pack, real answers; ONCE=1 ends after the walk, PORT=… for another port
	@scripts/prepare .venv webui test engine speech
	@$(PYTHON) scripts/demo.py

test: ## all tests that this machine can run, on the newest and the oldest Open WebUI
	@scripts/prepare .venv webui pipelines engine gateways speech test
	@scripts/prepare .venv-oldest webui-oldest test
	@scripts/prepare .venv-federation federation
	@$(PYTHON) scripts/run_tests.py --require=$(REQUIRE)

check: ## ruff, mypy --strict, no stale generated file
	@scripts/prepare .venv webui pipelines engine gateways speech bench test lint
	@$(PYTHON) -m ruff format --check
	@$(PYTHON) -m ruff check
	@$(PYTHON) -m ruff check --quiet --isolated --select F401,F811,F821 functions pipelines tools
	@$(PYTHON) -m mypy
	@$(PYTHON) scripts/package.py --check
	@$(PYTHON) scripts/docs.py --check
	@$(PYTHON) scripts/messages.py --check

package: ## build the committed plugin files and dist/
	@scripts/prepare .venv
	@$(PYTHON) scripts/package.py

docs: ## write the tables that docs/ takes from the code
	@scripts/prepare .venv
	@$(PYTHON) scripts/docs.py

site: ## the documentation as a website, into dist/site/
	@scripts/prepare .venv-docs docs
	@.venv-docs/bin/python scripts/docs_site.py

bench: ## the benchmarks, into bench/results/
	@scripts/prepare .venv webui pipelines engine gateways speech bench test
	@for bench in bench/*.py; do $(PYTHON) $$bench || exit 1; done

release: ## the version VERSION=1.2.3 in every file, and dist/release/ with checksums
	@scripts/prepare .venv-release release
	@.venv-release/bin/python scripts/release.py '$(VERSION)'

format: ## format the code
	@scripts/prepare .venv lint
	@$(PYTHON) -m ruff format && $(PYTHON) -m ruff check --fix

clean: ## remove what the commands above have made
	rm -rf .venv .venv-oldest .venv-federation .venv-docs .venv-release .uv .cache dist .mypy_cache .pytest_cache .ruff_cache .hypothesis
