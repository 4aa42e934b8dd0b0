# Every target makes its own virtual environment from requirements.lock first.

PYTHON ?= python3
ARGS ?=
SOAK ?= 20
SECONDS ?= 60
VENV := .venv
PY := $(VENV)/bin/python
LOCKED := $(VENV)/.locked
READY := $(VENV)/.ready
PROMETHEUS := $(VENV)/prometheus

.DEFAULT_GOAL := help
.PHONY: help demo test privileges check audit licences fuzz prometheus bench docs soak lock clean

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: $(READY) ## Show everything working on this machine, with a MongoDB of its own
	$(VENV)/bin/distributary demo $(ARGS)

test: $(READY) ## Run the tests, with a MongoDB of their own (or the one in DISTRIBUTARY_TEST_URI)
	$(PY) -m pytest -n 3 --dist worksteal $(ARGS)

privileges: $(READY) ## Run the tests against servers that ask for users, with the documented roles and no more
	DISTRIBUTARY_TEST_LEAST_PRIVILEGE=1 $(PY) -m pytest -n 3 --dist worksteal \
	  tests/contract tests/integration tests/fault tests/property $(ARGS)

prometheus: $(PROMETHEUS) ## Fetch Debian's Prometheus, with which the tests check the dashboard and the alerts

# Advisories come from a service, which may be away for reasons outside of this tree. `make check` goes on then, and says
# in one line that they were NOT looked at and why; `make audit` fails. One that is found fails both.
check: $(READY) licences ## Check style, types, imports, documentation, deploy/, licences and advisories
	$(PY) -m ruff check
	$(PY) -m ruff format --check
	$(PY) -m mypy
	$(VENV)/bin/lint-imports
	$(PY) docs/generate.py --check
	$(PY) docs/build_site.py
	$(VENV)/bin/shellcheck .ci/run deploy/*.sh
	$(VENV)/bin/yamllint --strict --config-file deploy/.yamllint deploy
	$(VENV)/bin/hadolint deploy/Dockerfile
	@$(PY) .ci/audit.py || [ $$? -eq 3 ]

audit: $(READY) ## Look for known vulnerabilities of what requirements.lock pins
	@$(PY) .ci/audit.py

licences: $(READY) ## Check the licences of what is installed against those in pyproject.toml
	@$(PY) -m piplicenses --summary

bench: $(READY) ## Measure throughput and latency against other ways to do the job
	$(PY) benchmarks/run.py $(ARGS)

docs: $(READY) ## Write the generated pages anew, and build the site: build/site/index.html
	$(PY) docs/generate.py
	$(PY) docs/build_site.py

fuzz: $(READY) ## Fuzz configuration, positions and documents for SECONDS each (default: 60)
	$(PY) -m pip install --quiet uv
	$(PY) -m uv pip install --quiet --python $(PY) --group fuzz
	for target in positions documents configuration; do $(PY) fuzz/run.py $$target $(SECONDS) || exit 1; done

soak: $(READY) ## Run the property and fault tests SOAK times as long (default: 20)
	DISTRIBUTARY_SOAK=$(SOAK) $(PY) -m pytest -n 2 --timeout 7200 tests/property tests/fault $(ARGS)

lock: $(LOCKED) ## Pin dependencies anew after a change in pyproject.toml (ARGS=--upgrade for newer ones)
	$(PY) -m pip install --quiet uv
	$(PY) -m uv pip compile pyproject.toml --output-file requirements.lock --quiet \
	  --universal --python-version 3.11 --all-extras --group dev --group docs --generate-hashes \
	  --no-annotate --no-emit-index-url --no-emit-find-links --custom-compile-command 'make lock' $(ARGS)
	@! grep -n '://' requirements.lock || { echo 'requirements.lock must not name an index.' >&2; exit 1; }

clean: ## Remove the virtual environment, caches and builds
	rm -rf $(VENV) .fuzz .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache build dist

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
	@$(PY) -m compileall -q src tests  # the tests start many processes, and some environments write no bytecode
	@$(PY) -m pip check || { echo 'requirements.lock does not fit pyproject.toml. Run `make lock`.' >&2; exit 1; }
	@touch $@

# The package alone: its programs need nothing of what it depends on.
$(PROMETHEUS): $(LOCKED)
	@command -v apt-get >/dev/null || { echo 'There is no apt-get here. Install Prometheus with promtool,' \
	  'so that both are on the PATH.' >&2; exit 1; }
	rm -rf $@.part && mkdir $@.part
	cd $@.part && { apt-get download --quiet=2 prometheus \
	  || { apt-get update --quiet=2 && apt-get download --quiet=2 prometheus; }; }
	dpkg-deb --extract $@.part/prometheus_*.deb $@.part
	mv $@.part $@
