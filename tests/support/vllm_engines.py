"""Real vLLM servers on this machine, for tests and benchmarks."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import platform
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
import vllm_models
from deathwatch import DeathWatch

ROOT = Path(__file__).resolve().parents[2]
PYTHON = ROOT / ".venv-vllm" / "bin" / "python"
PLUGIN = ROOT / "backends" / "vllm_plugin" / "modelnet_vllm"
KEY = "a-key-of-the-tests"
READY = ROOT / ".venv-vllm" / ".ready"
SKIP = ROOT / ".venv-vllm" / ".skip"
START = 600.0
"""Seconds that an engine may take to be up: one that can't be, ends by itself long before."""
PATIENT = {
    "connect_timeout": 60.0,
    "first_byte_timeout": 600.0,
    "chunk_timeout": 600.0,
    "step_timeout": 600.0,
    "heartbeat": 60.0,
}
"""Settings of a backend for machines that are busy."""


def _dtype() -> str:
    """float32 on processors without instructions for bfloat16: emulated, reading a prompt takes as long as so many single steps."""
    with contextlib.suppress(OSError):
        flags = Path("/proc/cpuinfo").read_text().split()
        if "x86_64" in platform.machine() and "avx512_bf16" not in flags and "amx_bf16" not in flags:
            return "float32"
    return "auto"


DTYPE = os.environ.get("MODELNET_VLLM_DTYPE") or _dtype()
"""What engines compute in."""


def why_not(*models: str) -> str | None:
    """Why engines with these models can't be started here, None if they can."""
    if SKIP.exists():
        return SKIP.read_text().strip()
    if not READY.exists():
        return "needs .venv-vllm (make setup-vllm)"
    missing = [name for name in models if not vllm_models.directory(name).is_dir()]
    return f"needs converted models: {', '.join(missing)} (make vllm-models)" if missing else None


def extension(name: str) -> ModuleType:
    """A module of the extension, by its file: it is not installed here, and its package would want vLLM for others."""
    spec = importlib.util.spec_from_file_location(f"extension_{name}", PLUGIN / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


class Engine:
    """One server with one model. Ended by `stop` or `kill`, by the process group it leads; and when this process is gone.

    core: the processor core that all of it runs on: engines that share cores wait for each other's spinning threads.
    extension=False: vLLM as it is, without anything of ours. rewinds=False: without the extension's scheduler. paths: folders for
    PYTHONPATH. args: more of vLLM's arguments. environment: more of its environment.
    """

    def __init__(
        self,
        model: str,
        log: Path,
        *,
        core: int = 0,
        extension: bool = True,
        rewinds: bool = True,
        paths: Sequence[Path] = (),
        args: Sequence[str] = (),
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.model = model
        self.port = _free_port()
        self.url = f"http://127.0.0.1:{self.port}/v1"
        self._log = log
        self._core = core % (os.cpu_count() or 1)
        self._extension = extension
        self._rewinds = rewinds
        self._paths = [str(path) for path in paths]
        self._args = list(args)
        self._environment = dict(environment or {})
        self._process: subprocess.Popen[bytes] | None = None
        self._watch: DeathWatch | None = None

    @property
    def up(self) -> bool:
        """It was started, and has not ended."""
        return self._process is not None and self._process.poll() is None

    def launch(self) -> None:
        """Start it; `wait` until it is up."""
        command = [
            str(PYTHON), "-m", "vllm.entrypoints.openai.api_server",
            "--model", str(vllm_models.directory(self.model)), "--served-model-name", self.model,
            "--host", "127.0.0.1", "--port", str(self.port), "--api-key", KEY,
            "--max-model-len", "2048", "--max-num-seqs", "32", "--enforce-eager", "--dtype", DTYPE, *self._args,
        ]  # fmt: skip
        if self._extension:
            command += ["--logits-processors", "modelnet_vllm.v1:LogitsTap"]
        if self._extension and self._rewinds:
            command += ["--scheduler-cls", "modelnet_vllm.scheduler.RewindScheduler"]
        environment = {
            **os.environ,
            "HF_HUB_OFFLINE": "1",
            "VLLM_CPU_KVCACHE_SPACE": "1",
            "VLLM_CPU_OMP_THREADS_BIND": str(self._core),
            "VLLM_NO_USAGE_STATS": "1",
            "VLLM_SERVER_DEV_MODE": "1",  # for `reset`
            "VLLM_PLUGINS": "modelnet" if self._extension else "",
            "MODELNET_QUEUE": "4",
            "PYTHONPATH": os.pathsep.join(self._paths),
            **self._environment,
        }
        if self._watch is not None:
            self._watch.end()
        self._watch = DeathWatch()
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                command, env=environment, stdout=log, stderr=log, cwd=self._log.parent, start_new_session=True
            )
        if hasattr(os, "sched_setaffinity"):
            os.sched_setaffinity(self._process.pid, {self._core})
        self._watch.over(self._process.pid)

    def wait(self) -> None:
        """Until it serves. Raises RuntimeError with the end of its log where it does not."""
        deadline = time.monotonic() + START
        while time.monotonic() < deadline:
            assert self._process is not None
            if self._process.poll() is not None:
                raise RuntimeError(f"the engine ended:\n{self.tail()}")
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/health", timeout=2):
                    return
            except (urllib.error.URLError, OSError):
                time.sleep(0.5)
        self.kill()
        raise RuntimeError(f"the engine is not up after {START:.0f} s:\n{self.tail()}")

    def stop(self) -> None:
        """Ask it to end; kill it if it does not."""
        if self._process is not None and self.up:
            os.killpg(self._process.pid, signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(20)
        self.kill()

    def children(self, name: str) -> list[int]:
        """Process ids of those of its processes whose name contains this."""
        assert self._process is not None
        found = []
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                with contextlib.suppress(OSError, ValueError):
                    group = int((entry / "stat").read_text().rsplit(")", 1)[1].split()[2])
                    if group == self._process.pid and name in (entry / "cmdline").read_text():
                        found.append(int(entry.name))
        return found

    def kill(self) -> None:
        """SIGKILL to the server, its engine and its workers at once."""
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None
        if self._watch is not None:
            self._watch.end()
            self._watch = None

    def get(self, path: str) -> bytes:
        """GET of a path of the server's root."""
        return self._call(path, None)

    def post(self, path: str, body: object) -> Any:
        """POST of JSON to a path of the server's root; its JSON answer."""
        return json.loads(self._call(path, json.dumps(body).encode()))

    def reset(self) -> None:
        """Empty its prefix cache. Refused while a request that has just ended still holds a block."""
        empty_cache(f"http://127.0.0.1:{self.port}")

    def _call(self, path: str, body: bytes | None) -> bytes:
        headers = {"Authorization": f"Bearer {KEY}", "Content-Type": "application/json"}
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}{path}", body, headers)
        with urllib.request.urlopen(request, timeout=600) as answer:  # noqa: S310
            return bytes(answer.read())

    def tail(self) -> str:
        return "\n".join(self._log.read_text(errors="replace").splitlines()[-40:])


def empty_cache(root: str) -> None:
    """Of an engine that was started in vLLM's development mode. root: its address, without a path. Raises RuntimeError."""
    for _ in range(100):
        request = urllib.request.Request(f"{root}/reset_prefix_cache", b"", {"Authorization": f"Bearer {KEY}"})  # noqa: S310
        with urllib.request.urlopen(request, timeout=600) as answer:  # noqa: S310
            if json.loads(answer.read())["success"]:
                return
        time.sleep(0.1)
    raise RuntimeError("the engine's prefix cache can't be emptied")


def bring_up(engines: Iterable[Engine]) -> None:
    """Start those that are not up, side by side. Raises as `Engine.wait`."""
    down = [engine for engine in engines if not engine.up]
    for engine in down:
        engine.launch()
    for engine in down:
        engine.wait()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
