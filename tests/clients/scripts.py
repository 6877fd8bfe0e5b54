"""Gateways of scripted models that can do what the clients ask: see `common/checks.py` for the questions.

Every model has the same script, so an answer is the same in every wiring. What is looked for stands in the last turn: the question, in a
chain with what earlier stages wrote, or what tools returned.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).resolve().parents[1] / "e2e"))  # where real processes for tests are

from served import KEY, Process, gateway, upstream

WIRINGS = {"single": "a", "forwarded": "far", "chain": "si:a>b", "split-fused": "s2p:a>b|c", "fused": "pi:a|b"}
"""How the models of a client's program are wired. forwarded: a model behind another server."""


def call(name: str, /, **arguments: Any) -> str:
    """A tool call as a model writes it."""
    written = json.dumps({"name": name, "arguments": arguments}, ensure_ascii=False)
    return f"<tool_call>\n{written}\n</tool_call>"


PERSON = {"name": "Ada", "age": 36}

RULES: list[tuple[str, str]] = [
    ("69.8", "It is 69.8 °F in Paris. 好的 👍"),
    ("21 degrees", call("to_fahrenheit", celsius=21)),
    ("the weather in Paris", call("get_weather", city="Paris")),
    ("as JSON", json.dumps(PERSON)),
    ("by final_result", call("final_result", **PERSON)),
    ("by the partial tool", call("PartialPerson", **PERSON)),
    ("by the tool", call("Person", **PERSON)),
    ("Say hello", "Hello from all of us. 是的 😀 naïve"),
]


def configuration(rules: list[tuple[str, str]], names: Sequence[str] = "abc", **more: Any) -> str:
    """As YAML (JSON is). more: further entries of the file."""
    script = [{"contains": contains, "answer": answer} for contains, answer in rules]
    fakes = {name: {"backend": "fake", "rules": script, "answer": "I see."} for name in names}
    return "\n".join(
        f"{key}: {json.dumps(value, ensure_ascii=False)}"
        for key, value in {"models": {**fakes, **more.pop("models", {})}, **more}.items()
    )


@contextmanager
def scripted(folder: Path, rules: list[tuple[str, str]] = RULES, key: str = KEY, **more: Any) -> Iterator[str]:
    """The address of a gateway over scripted models a, b, c, and `far` behind a gateway of its own. Up to and with `/v1`."""
    behind, front = folder / "behind", folder / "front"
    for each in (behind, front):
        each.mkdir(exist_ok=True)
    with gateway(behind, configuration(rules)) as upstream:
        far = {"backend": "openai", "base_url": str(upstream.base_url).rstrip("/"), "api_key": KEY, "model": "a"}
        models = {"far": far, **more.pop("models", {})}
        with gateway(front, configuration(rules, models=models, **more), key) as client:
            yield str(client.base_url).rstrip("/")


__all__ = ["KEY", "RULES", "WIRINGS", "Process", "call", "configuration", "gateway", "scripted", "upstream"]
