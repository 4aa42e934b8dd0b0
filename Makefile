# Every target makes its own virtual environment from requirements.lock first.

PYTHON ?= python3
ARGS ?=
SOAK ?= 20
VENV := .venv
PY := $(VENV)/bin/python
LOCKED := $(VENV)/.locked
READY := $(VENV)/.ready

.DEFAULT_GOAL := help
.PHONY: help demo test check dashboards bench docs soak lock clean

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-7s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: $(READY) ## Show everything working on this machine, with a MongoDB of its own
	$(VENV)/bin/distributary demo $(ARGS)

test: $(READY) ## Run the tests, with a MongoDB of their own (or the one in DISTRIBUTARY_TEST_URI)
	$(PY) -m pytest -n 3 --dist worksteal $(ARGS)

dashboards: $(READY) ## Check dashboard and alerts with Debian's prometheus, which has to be installed
	DISTRIBUTARY_TEST_PROMETHEUS=1 $(PY) -m pytest tests/unit/test_deploy.py tests/integration/test_dashboard.py $(ARGS)

check: $(READY) ## Check style, types, import directions and generated documentation
	$(PY) -m ruff check
	$(PY) -m ruff format --check
	$(PY) -m mypy
	$(VENV)/bin/lint-imports
	$(PY) docs/generate.py --check

bench: $(READY) ## Measure throughput and latency against other ways to do the job
	$(PY) benchmarks/run.py $(ARGS)

docs: $(READY) ## Write the generated parts of the documentation anew
	$(PY) docs/generate.py

soak: $(READY) ## Run the property and fault tests SOAK times as long (default: 20)
	DISTRIBUTARY_SOAK=$(SOAK) $(PY) -m pytest -n 2 --timeout 7200 tests/property tests/fault $(ARGS)

lock: $(LOCKED) ## Pin dependencies anew after a change in pyproject.toml (ARGS=--upgrade for newer ones)
	$(PY) -m pip install --quiet uv
	$(PY) -m uv pip compile pyproject.toml --output-file requirements.lock --quiet \
	  --universal --python-version 3.11 --all-extras --group dev --generate-hashes \
	  --no-annotate --no-emit-index-url --no-emit-find-links --custom-compile-command 'make lock' $(ARGS)
	@! grep -n '://' requirements.lock || { echo 'requirements.lock must not name an index.' >&2; exit 1; }

clean: ## Remove the virtual environment, caches and builds
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache build dist

$(LOCKED): requirements.lock
	@command -v $(PYTHON) >/dev/null || { echo 'There is no $(PYTHON). Install Python 3.11 or later,' \
	  'or name one: make PYTHON=python3.12 ...' >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo '$(PYTHON) is older than 3.11.' \
	  'Name a newer one: make PYTHON=python3.12 ...' >&2; exit 1; }
	$(PYTHON) -m venv --clear $(VENV)
	$(PY) -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements.lock
	@touch $@

$(READY): $(LOCKED) pyproject.toml
	$(PY) -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@$(PY) -m pip check || { echo 'requirements.lock does not fit pyproject.toml. Run `make lock`.' >&2; exit 1; }
	@touch $@
