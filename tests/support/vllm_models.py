"""Makes Hugging Face directories out of the GGUF files that the project's tests have, for vLLM.

    .venv-vllm/bin/python tests/support/vllm_models.py smol qwen

Runs in the environment that holds vLLM (torch, transformers, gguf, accelerate). Weights are dequantised once, to bfloat16, into
$MODELNET_HOME/vllm/NAME (~/.cache/modelnet/vllm/NAME); a directory that is there is left alone. It comes into being under
another name and is renamed when it is whole, so an interrupted run leaves nothing that looks finished.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

HOME = Path(os.environ.get("MODELNET_HOME") or Path.home() / ".cache" / "modelnet")

SOURCES = {
    "smol": "SmolLM2-135M-Instruct.Q4_1.gguf",
    "gemma": "gemma-3-270m.Q4_K_M.gguf",
    "qwen": "qwen2.5-coder-0.5b-instruct-q4_k_m.gguf",
}
"""Name → file in $MODELNET_HOME/models."""


def directory(name: str) -> Path:
    """Where the converted model is, or will be."""
    return HOME / "vllm" / name


def convert(name: str) -> Path:
    """Convert one model, unless it is there. Takes 15 to 35 s. Raises FileNotFoundError where the weights are missing."""
    target = directory(name)
    if target.is_dir():
        return target
    source = HOME / "models" / SOURCES[name]
    if not source.is_file():
        raise FileNotFoundError(f"{source.name} is not in {source.parent}; `make weights` fetches it")
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    half = target.with_name(f"{name}.part-{os.getpid()}")
    half.mkdir(parents=True)
    try:
        where = {"pretrained_model_name_or_path": str(source.parent), "gguf_file": source.name}
        model = AutoModelForCausalLM.from_pretrained(
            **where, dtype=torch.bfloat16, quantization_config=GgufConfig(dequantize=True)
        )
        for attribute in ("quantization_config", "_pre_quantization_dtype"):
            if hasattr(model.config, attribute):
                delattr(model.config, attribute)
        for attribute in ("hf_quantizer", "quantization_method"):
            if hasattr(model, attribute):
                setattr(model, attribute, None)
        model.is_quantized = False
        model.save_pretrained(half)
        AutoTokenizer.from_pretrained(**where).save_pretrained(half)
        half.rename(target)
    except BaseException as error:
        shutil.rmtree(half, ignore_errors=True)
        if not (isinstance(error, OSError) and target.is_dir()):  # else somebody else was quicker
            raise
    return target


def main() -> None:
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    names = sys.argv[1:] or ["smol", "qwen"]
    if len(names) == 1:
        sys.stdout.write(f"{names[0]}: {convert(names[0])}\n")
        return
    # Side by side, each on a thread of its own: most of it is not parallel.
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TQDM_DISABLE": "1"}
    children = [subprocess.Popen([sys.executable, __file__, name], env=environment) for name in names]
    codes = [child.wait() for child in children]
    if any(codes):
        sys.exit("a model could not be converted")


if __name__ == "__main__":
    main()
