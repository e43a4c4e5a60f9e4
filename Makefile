# Each target installs what it needs into a virtual environment ($(VENV)).

PYTHON ?= python3
VENV ?= .venv
MINUTES ?= 30
EXAMPLES ?= 150
BIN := $(VENV)/bin
PYTEST := $(BIN)/python -m pytest
WORKERS ?= 3
IN_PARALLEL := --numprocesses $(WORKERS) --dist worksteal

.PHONY: help demo up test test-unit test-promtool test-generated test-browser test-containers \
  test-kubernetes test-postman test-protocol test-release screenshots test-faults soak bench bench-smoke coverage \
  lint format lock docs dist sbom audit diagrams clean

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST)

demo: $(VENV)/run.done ## start everything on this machine, deliver 20 events, show the result of each
	@$(BIN)/python -m wds demo

up: $(VENV)/run.done .env ## run everything on this machine until Ctrl-C
	@$(BIN)/python -m wds up

test: $(VENV)/dev.done ## run all tests against a real MongoDB and a real Redis
	$(PYTEST) $(IN_PARALLEL) $(ARGS)

test-unit: $(VENV)/dev.done ## run the tests that need no MongoDB and no Redis
	$(PYTEST) tests/unit $(IN_PARALLEL) $(ARGS)

test-promtool: $(VENV)/dev.done ## test metrics, alerts and dashboard with a real Prometheus, which must be installed
	$(PYTEST) tests/tools/test_promtool.py tests/tools/test_prometheus.py

test-generated: $(VENV)/dev.done ## send thousands of requests generated from the OpenAPI documents
	EXAMPLES=$(EXAMPLES) $(PYTEST) tests/e2e/test_generated.py $(ARGS)

test-browser: $(VENV)/browser.done ## test the console in Chromium, which must be installed (path: CHROMIUM)
	$(PYTEST) tests/browser $(ARGS)

screenshots: $(VENV)/browser.done ## renew the pictures of the console in the documents
	$(PYTEST) tests/browser/screenshots.py $(ARGS)

test-containers: $(VENV)/dev.done $(VENV)/ship.done ## check and run the contents of the containers; needs root, nginx and docker-compose
	$(PYTEST) tests/tools/test_containers.py $(ARGS)

test-kubernetes: $(VENV)/dev.done $(VENV)/ship.done ## build and check the Kubernetes manifests; needs kustomize
	$(PYTEST) tests/tools/test_kubernetes.py $(ARGS)

test-postman: $(VENV)/dev.done ## run the Postman collection with newman; needs npm
	$(PYTEST) tests/tools/test_postman.py $(ARGS)

test-protocol: $(VENV)/dev.done ## check the models in docs/protocol; spin and gcc must be installed
	$(PYTEST) tests/tools/test_protocol.py $(ARGS)

test-release: $(VENV)/dev.done $(VENV)/ship.done ## install the wheel and the sdist into empty environments and use them
	$(PYTEST) tests/tools/test_release.py $(ARGS)

test-faults: $(VENV)/dev.done ## kill and stall everything for a few minutes
	$(PYTEST) tests/faults $(ARGS)

soak: $(VENV)/dev.done ## run the long version of test-faults again and again: MINUTES=30
	@end=$$(($$(date +%s) + $(MINUTES) * 60)); while [ $$(date +%s) -lt $$end ]; do \
	  $(PYTEST) tests/faults --scale long -x -rP $(ARGS) || exit 1; done

bench: $(VENV)/bench.done ## measure everything, takes an hour: ARGS="--payloads DIR --peers FILE --out DIR"
	$(BIN)/python -m benchmarks $(ARGS)

bench-smoke: $(VENV)/bench.done ## run a little of every measurement, to check that it works
	$(BIN)/python -m benchmarks --smoke $(ARGS)

coverage: $(VENV)/dev.done ## run all tests with branch coverage
	$(PYTEST) $(IN_PARALLEL) --cov --cov-report=term $(ARGS)

lint: $(VENV)/dev.done ## check format, lint, types and import contracts
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(VENV)/dev.done ## rewrite the code to the house format
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

lock: $(VENV)/dev.done ## renew the pins of all dependencies, with hashes and without index addresses
	$(BIN)/python -m pip install --quiet uv
	for set in "run pyproject.toml --extra embedded --group build" \
	  "dev pyproject.toml --extra embedded --group dev --extra otel -c requirements/run.txt" \
	  "bench pyproject.toml --extra embedded --group bench -c requirements/run.txt" \
	  "browser pyproject.toml --extra embedded --group browser -c requirements/dev.txt" \
	  "image pyproject.toml --extra otel -c requirements/dev.txt" "build --group image -c requirements/run.txt" \
	  "ship pyproject.toml --group docs --group ship -c requirements/dev.txt"; do \
	  set -- $$set; to=requirements/$$1.txt; shift; \
	  $(BIN)/uv pip compile --quiet --upgrade --universal --python-version 3.11 --generate-hashes \
	    --no-emit-index-url --no-header --no-strip-extras "$$@" -o $$to || exit 1; done

docs: $(VENV)/ship.done ## build the documentation into site/, in strict mode
	NO_MKDOCS_2_WARNING=1 DISABLE_MKDOCS_2_WARNING=true $(BIN)/mkdocs build --strict --quiet

dist: $(VENV)/ship.done ## build the wheel and the source distribution into dist/
	$(BIN)/python -m build --no-isolation --outdir dist .

sbom: $(VENV)/ship.done ## write a CycloneDX bill of materials of the image, dist/sbom.json
	@mkdir -p dist
	$(BIN)/cyclonedx-py requirements requirements/image.txt --pyproject pyproject.toml \
	  --mc-type application --output-reproducible --validate -o dist/sbom.json

audit: $(VENV)/ship.done ## check the pinned dependencies for known vulnerabilities; needs the network
	for set in image run; do \
	  $(BIN)/pip-audit --disable-pip --require-hashes -r requirements/$$set.txt || exit 1; done

diagrams: ## render docs/diagrams/*.dot; needs graphviz
	for drawing in docs/diagrams/*.dot; do \
	  { dot -Tsvg $$drawing && printf '<!-- sha256 of the source: %s -->\n' \
	    "$$(sha256sum < $$drawing | cut -d' ' -f1)"; } > $${drawing%.dot}.svg || exit 1; done

clean: ## remove the virtual environment and all local data
	rm -rf $(VENV) .wds site dist .coverage .coverage.* .mypy_cache .ruff_cache .pytest_cache .import_linter_cache

.env: ## write a new secret, readable by its owner only
	@umask 077 && printf 'WDS_HMAC_SECRET=%s\n' "$$($(PYTHON) -c 'import secrets; print(secrets.token_hex(32))')" > $@
	@echo "wrote .env with a new WDS_HMAC_SECRET"

$(VENV)/%.done: requirements/%.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "wds needs Python 3.11 or newer; set PYTHON=")'
	@echo "installing into $(VENV) ..."
	@$(BIN)/python -c 'import pip, sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || $(PYTHON) -m venv --clear $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r $<
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@
