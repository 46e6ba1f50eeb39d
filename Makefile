# Everything a newcomer needs: `make demo` and `make test`. Each creates .venv and installs what it needs by itself.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.stamp
EXAMPLE := examples/music_transcription
# The runtimes that tests use: `light`, or `all` with TensorFlow, PyTorch, JAX and CatBoost, gigabytes that not every change needs.
BACKENDS ?= light
# Test files that run at the same time: most of their time is waiting for processes to start.
JOBS ?= 2
RUNTIMES := $(STAMP)-backends-$(BACKENDS)
export BACKENDS

.PHONY: help install demo serve test lint protos bench attack fuzz clean
.DEFAULT_GOAL := help

help:  ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-10s %s\n", $$1, $$2}'

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip

$(STAMP)-test: pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --no-warn-conflicts --editable '.[onnx,grpc,plot,watch,cloud,redis,envs]' --group test --group lint
	@touch $@

$(STAMP)-backends-light: pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --no-warn-conflicts --group backends
	@touch $@

$(STAMP)-backends-all: pyproject.toml tests/backends/requirements-models.txt | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --no-warn-conflicts --group backends-all
	$(BIN)/python -m pip install --quiet --no-deps --requirement tests/backends/requirements-models.txt
	@touch $@

# The packages of the models pin TensorFlow and PyTorch; only the ONNX files in them are wanted.
$(STAMP)-demo: pyproject.toml $(EXAMPLE)/requirements.txt $(EXAMPLE)/requirements-models.txt | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --no-warn-conflicts --editable '.[onnx,grpc,plot]' --requirement $(EXAMPLE)/requirements.txt
	$(BIN)/python -m pip install --quiet --no-deps --requirement $(EXAMPLE)/requirements-models.txt
	@touch $@

demo: $(STAMP)-demo  ## serve two networks and transcribe music with them: a known melody, or AUDIO=song.ogg
	$(BIN)/python $(EXAMPLE)/demo.py $${AUDIO:+-- "$$AUDIO"}

serve: $(STAMP)-demo  ## the same server, left running on ports 8000 (HTTP), 8001 (gRPC) and 8002 (metrics)
	$(BIN)/python $(EXAMPLE)/build_repository.py build/models
	exec $(BIN)/backline serve build/models

install: $(STAMP)-test $(STAMP)-demo $(RUNTIMES)  ## the environment for development, in .venv

test: $(STAMP)-test $(STAMP)-demo $(RUNTIMES)  ## all tests (BACKENDS=all for those of the heavy runtimes too)
	$(BIN)/python -m pytest --numprocesses $(JOBS) --dist loadfile

lint: $(STAMP)-test  ## format, lint, types and layers
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

protos: $(STAMP)-test  ## compile the .proto files
	$(BIN)/python -m backline.protos.compile

bench: $(STAMP)-test  ## Backline beside its peers, in one run (BENCH="--quick" for a short one)
	$(BIN)/python benchmarks/run.py $(BENCH)

attack: $(STAMP)-test  ## floods, bombs and slow clients beside an honest one (ATTACK="--only ping" for one)
	$(BIN)/python benchmarks/attack.py $(ATTACK)

fuzz: $(STAMP)-test  ## 200,000 mutated inputs over HTTP/1.1, HTTP/2, gRPC and the infer bodies
	$(BIN)/python tests/fuzz/fuzz_wire.py --inputs 200000

clean:  ## remove the environment and what was built
	rm -rf $(VENV) build dist
