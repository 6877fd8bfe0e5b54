# The gateway: no models in it, no compiler left in it, no GPU. Build from the top of the repository:
#   docker build -f deploy/docker/gateway.Dockerfile -t modelnet-gateway .
FROM python:3.12-slim AS build
# The fuser's core is compiled here; without a compiler it would run in Python.
RUN apt-get update && apt-get install --yes --no-install-recommends gcc libc6-dev && rm -rf /var/lib/apt/lists/*
WORKDIR /src
COPY pyproject.toml README.md LICENSE ./
COPY gateway gateway
COPY backends backends
COPY strategies strategies
COPY config config
RUN python -m venv /opt/modelnet && /opt/modelnet/bin/pip install --no-cache-dir .

FROM python:3.12-slim
COPY --from=build /opt/modelnet /opt/modelnet
RUN useradd --system --create-home --uid 10001 modelnet
USER modelnet
ENV PATH=/opt/modelnet/bin:$PATH PYTHONUNBUFFERED=1 MODELNET_HOME=/home/modelnet/.cache/modelnet
EXPOSE 8000
# Ready: every model answers. Kubernetes has probes of its own (/healthz, /readyz); this is for docker.
HEALTHCHECK --interval=10s --timeout=3s --start-period=20s CMD ["python", "-c", \
    "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/healthz', timeout=2)"]
ENTRYPOINT ["modelnet"]
CMD ["serve", "--config", "/etc/modelnet/gateway.yaml", "--host", "0.0.0.0", "--port", "8000"]
