# Every target works on a fresh clone: the first one creates .venv from requirements.lock.
SHELL := /bin/bash
.DEFAULT_GOAL := help
PYTHON ?= python3.11
BIN := .venv/bin
PORT ?= 3000

# Quiet: no tool reports home. The project's own interpreter and dvc come first on PATH, because dvc.yaml says `python`.
export PATH := $(CURDIR)/$(BIN):$(PATH)
export DO_NOT_TRACK := true
export PREFECT_SERVER_ANALYTICS_ENABLED := false
export MLFLOW_DISABLE_TELEMETRY := true
export BENTOML_DO_NOT_TRACK := True
export BENTOML_HOME := $(CURDIR)/.bentoml
export DVC_NO_ANALYTICS := 1
export RAY_USAGE_STATS_ENABLED := 0
export GX_ANALYTICS_ENABLED := false
export HF_HUB_DISABLE_TELEMETRY := 1
export HF_HUB_DISABLE_PROGRESS_BARS := 1
export TOKENIZERS_PARALLELISM := true

.PHONY: help run preview test check verify serve chat demo flow mlflow report data-report bench bento image deps lock

help: ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 10

.venv/installed: requirements.lock
	@command -v $(PYTHON) >/dev/null || { echo "$(PYTHON) not found: install Python 3.11, or say PYTHON=/path/to/python3.11"; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --disable-pip-version-check -q -r requirements.lock
	@touch $@

run: .venv/installed ## text to served model; RECIPE=smoke, SOURCE=path of your text, INIT_FROM=a model's folder or release
	@python -m stages.plumbing.recipe $(if $(RECIPE),--recipe $(RECIPE)) $(if $(SOURCE),--source "$(SOURCE)") $(if $(INIT_FROM),--init-from "$(INIT_FROM)")
	@dvc repro || { status=$$?; python -m stages.plumbing.mirror; echo "Stopped. What is finished is kept: run again to continue."; exit $$status; }
	@# an upstream stage that ran again and gave the same bytes leaves the package, but not its lineage, up to date
	@python -m llm.export.lineage --check >/dev/null || dvc repro --force --single-item package
	@python -m stages.plumbing.mirror
	@python -m stages.plumbing.report
	@echo "Serve it: make serve    Talk to it: make chat    Compare: make demo"

preview: .venv/installed ## ten records of SOURCE=path as they would enter; ARGS="--format csv --columns text=body"
	@test -n "$(SOURCE)" || { echo "make preview SOURCE=folder, file, archive, glob, URL or dataset"; exit 1; }
	@python -m llm.data.preview $(ARGS) -- "$(SOURCE)"

test: .venv/installed ## the whole suite
	pytest

check: .venv/installed ## lint, format, types, fast tests
	ruff check . && ruff format --check . && mypy && python -m stages.plumbing.deps && pytest -m "not slow"

verify: .venv/installed ## what this machine lacks, and which tests are skipped for it
	@python -m stages.plumbing.machine

serve: .venv/installed ## serve models/release on 127.0.0.1:$(PORT): chat page at /, API under /v1
	@python -m llm.serve --port $(PORT)

chat: .venv/installed ## talk to models/release in the terminal
	@python -m llm.serve.chat

demo: .venv/installed ## three questions answered by base, sft and policy side by side
	@python -m llm.serve.demo

flow: .venv/installed ## a local Prefect server, the pipeline with a nightly schedule, and a worker
	@python -m flows.deploy

mlflow: .venv/installed ## the MLflow UI
	@python -m stages.plumbing.mirror
	mlflow ui --backend-store-uri sqlite:///mlflow.db --host 127.0.0.1 --port 5000

data-report: .venv/installed ## what went in, what was dropped and why, on one page; SOURCE=path for data that is not ingested
	@python -m stages.plumbing.data_report $(ARGS) $(if $(SOURCE),-- "$(SOURCE)")

report: .venv/installed ## render reports/report.html and name it
	@python -m stages.plumbing.report

bench: .venv/installed ## a benchmark: NAME=train
	@test -f "benchmarks/$(NAME).py" || { echo "make bench NAME=one of: $(patsubst benchmarks/%.py,%,$(wildcard benchmarks/*.py))"; exit 1; }
	@test -f benchmarks/.venv/installed || { $(PYTHON) -m venv benchmarks/.venv && benchmarks/.venv/bin/python -m pip install --disable-pip-version-check -q -r benchmarks/requirements.lock && touch benchmarks/.venv/installed; }
	benchmarks/.venv/bin/python -m benchmarks.$(NAME)

bento: .venv/installed ## build a Bento that holds models/release
	@python -m llm.export.verify models/release
	bentoml build

image: bento ## a container image of the latest Bento, which needs docker or podman
	@# from /: BentoML refuses a Dockerfile template outside of the working folder, and unpacks the Bento in /tmp
	cd / && bentoml containerize gristmill:latest

deps: .venv/installed ## rewrite the code deps of dvc.yaml from the import closures
	@python -m stages.plumbing.deps --write

lock: .venv/installed ## compile requirements.lock from requirements.in (find a CPU torch with UV_FIND_LINKS)
	@sed -i 's/^torch==\([0-9.]*\)$$/torch==\1+cpu/' requirements.lock  # what is locked is preferred: the CPU file, which names no CUDA package
	uv pip compile requirements.in -o requirements.lock --python-version 3.11 --no-emit-index-url --no-emit-find-links --no-header --no-annotate -q
	@sed -i 's/^\(torch==[0-9.]*\)+.*/\1/' requirements.lock
