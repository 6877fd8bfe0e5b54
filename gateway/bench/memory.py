"""What this process holds in memory.

Weights are mapped from their files: the pages that were touched count as resident, and other processes with the same file share
them. `anonymous` is what belongs to this process alone: KV caches, rearranged weights, tables.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from gateway.bench.report import Number

MIB = 2**20
_STATUS = Path("/proc/self/status")


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes, None where the system does not tell. peak: the most that was ever resident."""

    resident: int | None
    anonymous: int | None
    peak: int | None


def look() -> Memory:
    """This process, now."""
    if _STATUS.exists():
        fields = dict(line.split(":", 1) for line in _STATUS.read_text(encoding="ascii").splitlines() if ":" in line)
        resident, anonymous, peak = (_bytes(fields.get(key)) for key in ("VmRSS", "RssAnon", "VmHWM"))
        return Memory(resident, anonymous, peak)
    return Memory(_resident_by_ps(), None, _peak_by_rusage())


def _bytes(field: str | None) -> int | None:
    return None if field is None else int(field.split()[0]) * 1024


def _resident_by_ps() -> int | None:
    ps = shutil.which("ps")
    if ps is None:
        return None
    done = subprocess.run([ps, "-o", "rss=", "-p", str(os.getpid())], capture_output=True, text=True, check=False)
    return int(done.stdout) * 1024 if done.returncode == 0 else None


def _peak_by_rusage() -> int | None:
    try:
        import resource
    except ImportError:  # not a POSIX system
        return None
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def numbers(before: Memory, loaded: Memory, after: Memory) -> list[Number]:
    """before: nothing loaded. loaded: all models ready. after: everything was run."""
    found = [
        ("resident", "before loading", before.resident),
        ("resident", "after loading", loaded.resident),
        ("resident", "after the runs", after.resident),
        ("anonymous", "before loading", before.anonymous),
        ("anonymous", "after loading", loaded.anonymous),
        ("anonymous", "after the runs", after.anonymous),
        ("resident", "peak", after.peak),
    ]
    return [Number(measure, of, "MiB", (size / MIB,)) for measure, of, size in found if size is not None]
