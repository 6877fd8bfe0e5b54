# vLLM with the extension, so that its models can be members of groups. Build from the top of the repository:
#   docker build -f deploy/docker/vllm.Dockerfile -t modelnet-vllm .
# The version is one that the extension knows: with another, drafts and rewinding in place fall back to slower ways, never to wrong ones.
ARG VLLM_IMAGE=vllm/vllm-openai:v0.32.0
FROM ${VLLM_IMAGE}
COPY backends/vllm_plugin /opt/modelnet-vllm
# --no-deps: the extension needs nothing that vLLM has not brought, and must never change what is there.
RUN python3 -m pip install --no-cache-dir --no-deps /opt/modelnet-vllm
ENV VLLM_PLUGINS=modelnet
ENTRYPOINT ["python3", "-m", "vllm.entrypoints.openai.api_server"]
