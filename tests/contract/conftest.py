"""Runs the contract suite over every backend (the cases are in `contract_cases`)."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

import pytest
from contract_cases import Case, FakeCase, HTTPCase, LlamaCppCase

WEIGHTS = (
    Path(os.environ.get("MODELNET_CACHE", Path.home() / ".cache" / "modelnet"))
    / "models"
    / "SmolLM2-135M-Instruct.Q4_1.gguf"
)


@pytest.fixture(
    params=[
        "fake",
        "openai_http-vllm",
        "openai_http-llama.cpp",
        pytest.param("llama_cpp", marks=pytest.mark.models),
    ]
)
def case(request: pytest.FixtureRequest, tmp_path: Path) -> Case:
    match request.param:
        case "fake":
            return FakeCase()
        case "llama_cpp":
            if importlib.util.find_spec("llama_cpp") is None or not WEIGHTS.exists():
                pytest.skip("needs llama-cpp-python and the weights of smol")
            return LlamaCppCase(WEIGHTS)
        case other:
            return HTTPCase(other.removeprefix("openai_http-"), tmp_path)
