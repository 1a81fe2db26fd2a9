# The image of every CPU step (data, evaluation of small models, promotion, clean-up).
#   docker build -f images/pipeline.Dockerfile -t moonflow-pipeline:0.1.0 .
FROM python:3.11.7-slim-bookworm

RUN apt-get update \
    && apt-get install -y --no-install-recommends git=1:2.39.* \
    && rm -rf /var/lib/apt/lists/*

WORKDIR /opt/moonflow
# Dependencies first: they change seldom, so the layer is reused. torch alone, from the index of its CPU builds, before
# the rest: --build-arg TORCH_INDEX=<address>; without it the default index gives the CUDA build, which works but is large.
ARG TORCH_INDEX=
COPY requirements.lock .
RUN pip install --no-cache-dir torch==2.13.0 ${TORCH_INDEX:+--index-url "$TORCH_INDEX"} \
    && pip install --no-cache-dir -r requirements.lock

COPY pyproject.toml README.md LICENSE ./
COPY model model
COPY components components
COPY pipelines pipelines
# Promotion begins an empty GitOps repository with these, and looks for them beside the packages: hence -e.
COPY manifests manifests
RUN pip install --no-cache-dir --no-deps -e .

# Numeric: Kubeflow sets runAsNonRoot, and Kubernetes can only check that for a number.
USER 10001
ENV HOME=/tmp PYTHONUNBUFFERED=1
ENTRYPOINT []
CMD ["moonflow", "--help"]
