# Every target is one line here and one script beside it. `make help` prints the lines with two hashes.
SHELL := /bin/bash
.DEFAULT_GOAL := help
PY := .venv/bin/python
.PHONY: help venv up down kubeconfig test unit check docs e2e bench generate image clean

help: ## this list
	@sed -n 's/^\([a-z0-9]*\):[^#]*## /\1\t/p' $(MAKEFILE_LIST) | awk -F'\t' '{printf "  make %-11s %s\n", $$1, $$2}'
	@echo "  CLUSTER=existing KUBECONFIG=… REGISTRY=… make up | e2e | down   on a cluster of your own"

venv: ## .venv with everything that tests and tools need
	@hack/venv

up: ## a local Kubernetes, the operator, a node, a question, the answer
	@hack/up

down: ## take all of it away again
	@hack/down

kubeconfig: ## eval "$(make kubeconfig)": this shell's kubectl talks to the local cluster
	@tests/cluster/cluster env

test: ## all tests: unit, integration, golden, stress, then end to end on a real cluster
	@hack/test

unit: venv ## the tests that need no cluster
	@$(PY) -m pytest -m "not cluster"

check: venv ## lint, types, layers, generated files, chart: quick
	@hack/check

docs: venv ## the documentation as a site, in build/site
	@NO_MKDOCS_2_WARNING=1 .venv/bin/mkdocs build --strict && echo "  build/site/index.html"

e2e: ## the end-to-end tests; the cluster stays up (ARGS="-k name" for some)
	@hack/e2e $(ARGS)

bench: venv ## every program in benchmarks/, with its ratios
	@hack/bench

generate: venv ## CRDs and their reference, protobuf code, pictures
	@hack/generate

image: ## the images exo-node:dev and exo-operator:dev
	@tests/cluster/engine up && hack/images

clean: down ## and the caches of the local cluster (the next `make up` builds them again)
	@tests/cluster/cluster purge
