# The image of every CPU task (data, evaluation of small models, promotion, clean-up), and of MLflow, the object store and the
# CPU server of manifests/, so that a cluster runs the versions that the tests use.
#   docker build -f images/pipeline.Dockerfile -t moonflow-pipeline:0.1.0 .
# A tag can be moved. For a repeatable build give a digest that you trust:
#   --build-arg BASE_IMAGE=python:3.11.7-slim-bookworm@sha256:<digest>
ARG BASE_IMAGE=python:3.11.7-slim-bookworm
FROM ${BASE_IMAGE}

# Git is for the GitOps repository, libseccomp for programs of a model, which evaluation runs. The user has a name because some
# libraries ask for it.
RUN apt-get update \
    && apt-get install -y --no-install-recommends git=1:2.39.* libseccomp2=2.5.* \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --uid 10001 --no-create-home --home-dir /tmp --shell /usr/sbin/nologin moonflow

WORKDIR /opt/moonflow
# What rarely changes comes first, so that a change of our code rebuilds only the last layers. torch is installed alone, from the
# index of its CPU builds: --build-arg TORCH_INDEX=<address>; the default index has the CUDA build, which works but is large.
ARG TORCH_INDEX=
RUN PIP_INDEX_URL="${TORCH_INDEX}" pip install --no-cache-dir torch==2.13.0
# The project's dependencies at the locked versions, without its own packages and without what only tests need.
COPY pyproject.toml requirements.lock README.md LICENSE ./
RUN pip install --no-cache-dir --constraint requirements.lock . \
    && rm -rf build moonflow.egg-info

COPY model model
COPY components components
COPY pipelines pipelines
# Promotion starts an empty GitOps repository with these, and looks for them next to the packages: hence --editable.
COPY manifests manifests
RUN pip install --no-cache-dir --no-deps --editable .
# Compile the kernels next to their sources, for the build machine's kind of CPU (another kind: NUMBA_CPU_NAME and
# NUMBA_CPU_FEATURES). A process that may not write here starts with a copy. Numba compares the times of the sources, of which a
# layer keeps whole seconds.
RUN find model/network/kernels -name '*.py' -exec touch --date=2026-01-01T00:00:00Z {} + \
    && env HOME=/tmp PYTHONDONTWRITEBYTECODE=1 python -m model.rollout.compile_kernels

# Last, because it changes with every build.
ARG GIT_COMMIT=unknown
ENV HOME=/tmp PYTHONUNBUFFERED=1 MOONFLOW_GIT_COMMIT=${GIT_COMMIT}
LABEL org.opencontainers.image.title="moonflow-pipeline" \
      org.opencontainers.image.description="CPU tasks, MLflow and object store of moonflow" \
      org.opencontainers.image.version="0.1.0" \
      org.opencontainers.image.revision="${GIT_COMMIT}" \
      org.opencontainers.image.licenses="Apache-2.0"
# Numeric: Kubeflow sets runAsNonRoot, and Kubernetes can only check that for a number. No HEALTHCHECK: a task has no port.
USER 10001
ENTRYPOINT []
CMD ["moonflow", "--help"]
