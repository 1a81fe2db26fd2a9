# The image of the endpoint: the official SGLang image, and our code that fetches and verifies the promoted checkpoint.
#   docker build -f images/serve.Dockerfile -t moonflow-serve:0.1.0 .
# A tag can be moved. For a repeatable build give a digest that you trust:
#   --build-arg BASE_IMAGE=lmsysorg/sglang:v0.5.23@sha256:<digest>
# Init container and server have one image: a GPU node pulls only one, and one digest in Git covers both.
ARG BASE_IMAGE=lmsysorg/sglang:v0.5.23
FROM ${BASE_IMAGE}

# The user has a name because torch asks for it. SGLang's packages stay as they are: ours have a separate environment.
RUN useradd --uid 10001 --no-create-home --home-dir /tmp --shell /usr/sbin/nologin moonflow \
    && python3 -m venv /opt/moonflow/venv

WORKDIR /opt/moonflow
COPY requirements.lock .
RUN venv/bin/pip install --no-cache-dir --constraint requirements.lock \
        boto3==1.44.5 cryptography==50.0.2 model-signing==1.1.1 pydantic==2.14.3 pyOpenSSL==26.4.0

# Only what the verification imports: neither the network nor the pipeline.
COPY model/__init__.py model/
COPY model/boundary model/boundary
COPY components components
COPY images/serve-entry.sh /usr/local/bin/serve-entry

# HOME holds what SGLang, Triton and FlashInfer compile, and the processor code of the checkpoint.
ARG GIT_COMMIT=unknown
ENV HOME=/tmp PYTHONUNBUFFERED=1 MOONFLOW_GIT_COMMIT=${GIT_COMMIT}
LABEL org.opencontainers.image.title="moonflow-serve" \
      org.opencontainers.image.description="SGLang with moonflow's verification of promoted checkpoints" \
      org.opencontainers.image.version="0.1.0" \
      org.opencontainers.image.revision="${GIT_COMMIT}" \
      org.opencontainers.image.licenses="Apache-2.0"
USER 10001
EXPOSE 8000
# For docker run; on Kubernetes, manifests/ has the probes. /ready answers 200 once SGLang's warm-up has ended.
HEALTHCHECK --interval=30s --timeout=5s --start-period=60m --retries=3 \
    CMD ["python3", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/ready', timeout=4)"]
ENTRYPOINT ["serve-entry"]
CMD ["serve", "--host=0.0.0.0", "--port=8000"]
