"""Runs the contract suite over every backend (the cases are in `contract_cases`)."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
from pathlib import Path

import pytest
from contract_cases import Case, FakeCase, GuardedCase, HTTPCase, LlamaCppCase

WEIGHTS = (
    Path(os.environ.get("MODELNET_HOME", Path.home() / ".cache" / "modelnet"))
    / "models"
    / "SmolLM2-135M-Instruct.Q4_1.gguf"
)


def _has_litellm() -> bool:
    """Asked by its metadata: a folder of that name on the path would count as the module."""
    try:
        importlib.metadata.version("litellm")
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


@pytest.fixture(
    params=[
        "fake",
        "openai_http-vllm",
        "openai_http-llama.cpp",
        "guarded-fake",
        "guarded-openai_http-vllm",
        "hedged-fake",
        "hosted",
        pytest.param("llama_cpp", marks=pytest.mark.models),
        pytest.param("llama_cpp-fast", marks=pytest.mark.models),
    ]
)
def case(request: pytest.FixtureRequest, tmp_path: Path) -> Case:
    match request.param:
        case "fake":
            return FakeCase()
        case "guarded-fake":
            return GuardedCase(FakeCase(kept_steps=2))
        case "guarded-openai_http-vllm":
            return GuardedCase(HTTPCase("vllm", tmp_path))
        case "hedged-fake":
            return GuardedCase(FakeCase(), hedge=30.0)
        case "hosted":
            if not _has_litellm():
                pytest.skip("needs litellm: run in an environment of its own (tests/clients/test_hosted.py)")
            if "streams" not in request.module.__name__:
                pytest.skip("it opens no token sessions")
            from hosted_case import HostedCase

            return HostedCase()
        case "llama_cpp" | "llama_cpp-fast":
            if importlib.util.find_spec("llama_cpp") is None or not WEIGHTS.exists():
                pytest.skip("needs llama-cpp-python and the weights of smol")
            return LlamaCppCase(WEIGHTS, "fast" if request.param.endswith("fast") else "exact")
        case other:
            return HTTPCase(other.removeprefix("openai_http-"), tmp_path)
