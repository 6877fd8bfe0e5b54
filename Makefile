# Works with GNU make 3.81 (macOS) and later. Writes nothing outside this directory but caches (pip's, and the weights in
# MODELNET_HOME or ~/.cache/modelnet).
#
#   PYTHON=python3.12 make setup     a certain Python
#   make demo ARGS=--once            arguments for the command behind a target

ARGS ?=
CONFIG ?= config/demo.yaml
VENV := .venv
BIN := $(VENV)/bin
PY := $(BIN)/python
READY := $(VENV)/.ready
CORE := $(VENV)/.core
CORES := $(shell getconf _NPROCESSORS_ONLN 2>/dev/null || echo 2)

# llama.cpp is built once per machine, for its CPU, with all cores; the wheel is kept with the weights, for other checkouts.
# The two flags keep GCC 12 from dropping the stores that set up AMX tiles (llama.cpp issue 20824: it crashes without them).
# CMAKE_ARGS (for a GPU, say) is passed on as it is.
LLAMA := $(shell sed -n 's/.*"\(llama-cpp-python[^"]*\)".*/\1/p' pyproject.toml | head -1)
LLAMA_FLAGS := -fno-tree-dse -fno-dse
LLAMA_KEY := $(shell printf '%s' '$(LLAMA) $(LLAMA_FLAGS) $(CMAKE_ARGS)' | cksum | cut -d ' ' -f 1)
LLAMA_WHEELS = $(or $(MODELNET_HOME),$(HOME)/.cache/modelnet)/wheels/$(LLAMA_KEY)
LLAMA_BUILD := CMAKE_BUILD_PARALLEL_LEVEL="$${CMAKE_BUILD_PARALLEL_LEVEL:-$(CORES)}" \
	CFLAGS="$$CFLAGS $(LLAMA_FLAGS)" CXXFLAGS="$$CXXFLAGS $(LLAMA_FLAGS)"

# Checkouts that are set up at the same time wait for the one that compiles.
define LLAMA_WHEEL
ls "$(LLAMA_WHEELS)"/*.whl >/dev/null 2>&1 || { \
	rm -rf "$(LLAMA_WHEELS)/new" && $(LLAMA_BUILD) $(PY) -m pip wheel --quiet --disable-pip-version-check --no-deps \
		--no-cache-dir --no-binary llama-cpp-python --wheel-dir "$(LLAMA_WHEELS)/new" '$(LLAMA)' && \
	mv "$(LLAMA_WHEELS)/new"/*.whl "$(LLAMA_WHEELS)" && rmdir "$(LLAMA_WHEELS)/new"; }
endef
export LLAMA_WHEEL
ONE_AT_A_TIME := $(PY) -c 'import fcntl, subprocess, sys; held = open(sys.argv[1], "w"); fcntl.flock(held, fcntl.LOCK_EX); \
	sys.exit(subprocess.call(sys.argv[2:]))'

.DEFAULT_GOAL := help
include vllm.mk clients.mk
.NOTPARALLEL:
.PHONY: lock audit help setup demo bench bench-certificates bench-drafts bench-quorum bench-fusion bench-gateway bench-hand-over bench-peers eval-exactness eval-forms eval-fusers eval-same-text fuzz chaos weights test test-unit lint format wheel clean clean-all

help: ## what can be made here
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: $(READY) $(CORE) ## the environment in .venv, with everything; quick when it is there

demo: setup ## weights, gateway, one fused answer, then it keeps serving (ARGS=--once: ends after the answer)
	@$(BIN)/modelnet demo $(ARGS)

bench-certificates: setup weights ## certificates of fusion against full distributions
	@$(PY) tests/benchmarks/certificates.py $(ARGS)

bench-fusion: setup weights ## our own code per fused piece: 2, 3 and 5 members, k 10, 20, 64
	@$(PY) tests/benchmarks/fusion_cost.py $(ARGS)

bench-drafts: setup weights ## reading ahead: what it gains and costs (ARGS="--on vllm": on engines started for it)
	@$(PY) tests/benchmarks/drafts.py $(ARGS)

bench-hand-over: setup vllm-models ## how long a chain is silent between two stages on vLLM, with early prefill and without
	@$(PY) tests/benchmarks/hand_over.py $(ARGS)

bench-quorum: setup weights ## not waiting for everybody: exact over 100,000 pieces, how often, and what it gains
	@$(PY) tests/benchmarks/quorum.py $(ARGS)

bench-gateway: setup ## what the gateway costs a request, many streams at once, memory after many requests
	@$(PY) tests/benchmarks/gateway_load.py $(ARGS)

fuzz: setup ## 200,000 changed requests to every endpoint: no 5xx, no traceback (ARGS="--seed 1 --only 17": one again)
	@$(PY) tests/fuzz/fuzz.py $(ARGS)

chaos: setup weights ## a bad day of real engines, ten minutes of it (CHAOS_SEED, CHAOS_ENGINE_REQUESTS, CHAOS_ENGINE_SECONDS)
	@CHAOS_ENGINE_REQUESTS=$${CHAOS_ENGINE_REQUESTS:-5000} CHAOS_ENGINE_SECONDS=$${CHAOS_ENGINE_SECONDS:-600} \
		$(BIN)/pytest -s tests/e2e/test_chaos_engines.py $(ARGS)

bench-peers: setup ## other gateways beside ours, where they are installed (PEERS: the directory that starts them)
	@tests/benchmarks/peers.sh $(ARGS)

eval-exactness: setup weights ## what three tokenizers that write one text do to each other, over fifty prompts
	@$(PY) tests/evals/exactness.py $(ARGS)

eval-forms: setup weights ## answers of three tokenizers that are held to JSON schemas, judged
	@$(PY) tests/evals/forms.py $(ARGS)

eval-same-text: setup weights ## two hundred prompts with drafts and without: are the texts the same (ARGS="--on vllm")
	@$(PY) tests/evals/same_text.py $(ARGS)

eval-fusers: setup ## every fuser beside its members alone, on questions of yours (SET=questions.jsonl)
	@$(BIN)/modelnet eval $(or $(SET),$(error say which questions: SET=questions.jsonl)) --config tests/evals/fusers.yaml \
		-w qwen-1.5b -w qwen -w linear -w geometric -w union-top-k -w gated \
		-n 50 --max-tokens 256 --prompts brief --concurrency 4 $(ARGS)

bench: setup ## speed of the models, of what joins them, and of the gateway itself; beside others where they are installed
	@$(BIN)/modelnet bench $(ARGS)
	@$(PY) tests/benchmarks/gateway_load.py speed
	@tests/benchmarks/peers.sh || echo "the comparison with other gateways could not be made"

weights: setup ## the weights that the demo and the tests need
	@$(BIN)/modelnet models pull --config $(CONFIG)

test: setup lint weights vllm-where-possible ## lint, then every test, those on real vLLM engines included (VLLM=no: without; ARGS: for pytest)
	$(BIN)/pytest $(ARGS)

test-unit: setup ## the tests that need no weights, no network and no patience
	$(BIN)/pytest -m "not models and not slow and not wheel and not vllm" $(ARGS)

lint: setup ## style, types, and who imports whom
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(PY) strategies/fusion/core/compile.py --check
	cd backends/vllm_plugin && ../../$(BIN)/mypy
	$(BIN)/lint-imports

format: setup ## put the code into shape
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

wheel: setup ## dist/*.whl and dist/*.tar.gz
	$(PY) -m build --outdir dist .

# Tools in an environment of their own: they are no part of the product, nor of its tests.
LOCK_EXTRAS := --extra otel --extra postgres --extra shared
TOOLS := $(VENV)-tools

$(TOOLS)/.ready: | $(PY)
	@$(PY) -m venv $(TOOLS) && $(TOOLS)/bin/pip install --quiet --disable-pip-version-check 'pip-tools>=7.5' 'pip-audit>=2.9' && touch $@

lock: $(TOOLS)/.ready ## requirements.lock: every dependency with the hashes of its files
	@sed -n '/^#/p' requirements.lock > requirements.lock.new
	@$(TOOLS)/bin/pip-compile pyproject.toml $(LOCK_EXTRAS) --generate-hashes --strip-extras --allow-unsafe --quiet --no-header \
		--no-annotate --no-emit-index-url --no-emit-find-links --no-emit-trusted-host -o $(TOOLS)/lock
	@cat $(TOOLS)/lock >> requirements.lock.new && mv requirements.lock.new requirements.lock

audit: $(TOOLS)/.ready ## known vulnerabilities of what is locked; asks the package index's database
	@$(TOOLS)/bin/pip-audit --requirement requirements.lock --require-hashes --disable-pip

clean: ## remove what was built and cached here, but the environment
	rm -rf dist build .bench .mypy_cache .pytest_cache .ruff_cache .hypothesis .import_linter_cache
	rm -f strategies/fusion/_core.*.so $(CORE)
	find . -name __pycache__ -type d -not -path './.venv*' -prune -exec rm -rf {} +

clean-all: clean ## remove the environment too
	rm -rf $(VENV)

# The first Python that is new enough; pyenv's shims may name some that do not start.
$(PY):
	@for python in $(PYTHON) python3 python3.13 python3.12 python3.11 python3.14 python; do \
		if "$$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; then \
			echo "making $(VENV) with $$("$$python" --version)"; \
			"$$python" -m venv $(VENV) && exit 0; \
			rm -rf $(VENV); \
			echo "error: '$$python -m venv' failed; on Debian and Ubuntu: apt install python3-venv" >&2; \
			exit 1; \
		fi; \
	done; \
	echo "error: needs Python 3.11 or later, and found none (make setup PYTHON=/path/to/python3)" >&2; \
	exit 1

# Dependency groups need pip 25.1. What is installed is checked again only when pyproject.toml changes.
$(READY): pyproject.toml | $(PY)
	@$(PY) -c 'import pip, sys; sys.exit([int(n) for n in pip.__version__.split(".")[:2]] < [25, 1])' \
		|| $(PY) -m pip install --quiet --disable-pip-version-check --upgrade 'pip>=25.1'
	@if ! $(PY) -c 'import importlib.util as i, sys; sys.exit(not i.find_spec("llama_cpp"))'; then \
		for kind in "$${CC:-cc} gcc clang" "$${CXX:-c++} g++ clang++"; do \
			found=; for compiler in $$kind; do command -v "$$compiler" >/dev/null 2>&1 && found=1; done; \
			if [ -z "$$found" ]; then \
				echo "error: needs a C and C++ compiler for llama.cpp, and found none of: $$kind" >&2; \
				echo "  Debian, Ubuntu: apt install build-essential    Fedora: dnf install gcc-c++" >&2; \
				echo "  macOS: xcode-select --install" >&2; \
				exit 1; \
			fi; \
		done; \
		echo "installing; llama.cpp is compiled the first time, which takes some minutes"; \
	fi
	@mkdir -p "$(LLAMA_WHEELS)" && $(ONE_AT_A_TIME) "$(LLAMA_WHEELS)/lock" sh -c "$$LLAMA_WHEEL"
	@$(PY) -m pip install --quiet --disable-pip-version-check --find-links "$(LLAMA_WHEELS)" --only-binary llama-cpp-python \
		--editable '.[embedded]' --group dev
	@touch $(READY)

# The fuser's core: compiled when it was installed, too; here again when its sources changed, and to say so as long as it can't be.
$(CORE): $(READY) $(wildcard strategies/fusion/core/*.[ch]) strategies/fusion/core/compile.py
	@$(PY) strategies/fusion/core/compile.py
	@if ls strategies/fusion/_core.*.so > /dev/null 2>&1; then touch $(CORE); fi
