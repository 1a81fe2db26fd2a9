# The image of training and rollouts on GPU nodes: torch with CUDA, DeepSpeed, InfiniBand's user libraries.
#   docker build -f images/train.Dockerfile -t moonflow-train:0.1.0 .
# A tag can be moved. For a repeatable build give a digest that you trust:
#   --build-arg BASE_IMAGE=python:3.11.7-slim-bookworm@sha256:<digest>
# torch's wheel brings the CUDA libraries, so the base image needs none: the node has the driver, and the NVIDIA container
# toolkit mounts it. For another CUDA version: --build-arg TORCH_INDEX=<address of that build's index>.
ARG BASE_IMAGE=python:3.11.7-slim-bookworm
FROM ${BASE_IMAGE}

# A compiler, because Triton builds its launchers at first use; ibverbs, because NCCL needs it for RDMA and silently falls back to
# TCP without it; git, libseccomp and the named user as in pipeline.Dockerfile.
RUN apt-get update \
    && apt-get install -y --no-install-recommends \
        g++=4:12.* gcc=4:12.* git=1:2.39.* ibverbs-providers=44.* libibverbs1=44.* librdmacm1=44.* \
        libseccomp2=2.5.* ninja-build=1.11.* \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --uid 10001 --no-create-home --home-dir /tmp --shell /usr/sbin/nologin moonflow

WORKDIR /opt/moonflow
# What rarely changes comes first, so that a change of our code rebuilds only the last layers. torch is the largest layer.
ARG TORCH_INDEX=
RUN PIP_INDEX_URL="${TORCH_INDEX}" pip install --no-cache-dir torch==2.13.0
# The project's dependencies at the locked versions, without its own packages. DeepSpeed without its compiled extensions, which
# need a whole CUDA toolkit: the optimizer is ours, and ZeRO itself is Python.
COPY pyproject.toml requirements.lock README.md LICENSE ./
RUN pip install --no-cache-dir --constraint requirements.lock . \
    && DS_BUILD_OPS=0 pip install --no-cache-dir --constraint requirements.lock deepspeed==0.19.8 \
    && rm -rf build moonflow.egg-info

COPY model model
COPY components components
COPY pipelines pipelines
# As in the pipeline image, so that every step finds the same files.
COPY manifests manifests
RUN pip install --no-cache-dir --no-deps --editable .
# Compile the kernels next to their sources, for the build machine's kind of CPU (another kind: NUMBA_CPU_NAME and
# NUMBA_CPU_FEATURES). A process that may not write here starts with a copy. Numba compares the times of the sources, of which a
# layer keeps whole seconds.
RUN find model/network/kernels -name '*.py' -exec touch --date=2026-01-01T00:00:00Z {} + \
    && env HOME=/tmp PYTHONDONTWRITEBYTECODE=1 python -m model.rollout.compile_kernels

# Last, because it changes with every build. The NVIDIA variables ask the container toolkit for the driver's libraries.
ARG GIT_COMMIT=unknown
ENV HOME=/tmp PYTHONUNBUFFERED=1 MOONFLOW_GIT_COMMIT=${GIT_COMMIT} \
    NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility
LABEL org.opencontainers.image.title="moonflow-train" \
      org.opencontainers.image.description="Training and rollouts of moonflow on GPU nodes" \
      org.opencontainers.image.version="0.1.0" \
      org.opencontainers.image.revision="${GIT_COMMIT}" \
      org.opencontainers.image.licenses="Apache-2.0"
# No HEALTHCHECK: a rank has no port. The launcher and Kubernetes see it end.
USER 10001
ENTRYPOINT []
CMD ["moonflow", "--help"]
