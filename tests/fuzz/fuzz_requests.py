"""Valid requests to every endpoint, and JSON that is written as the fuzzer wants it: duplicate keys and torn numbers included."""

from __future__ import annotations

import random
from dataclasses import dataclass, field, replace
from typing import Any

MODELS = ("a", "b", "far", "embed", "pair", "draft", "support")
"""Names that the target knows: models here, models behind a server, aliases, a route."""
MEMBERS = ("a", "b", "far")
KEY, ADMIN, STRICT = "fuzz-key-that-may-do-all", "fuzz-key-of-the-admin", "fuzz-key-with-limits"

TOOL = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "How it is outside",
        "parameters": {
            "type": "object",
            "properties": {"town": {"type": "string", "enum": ["Bern", "Köln"]}},
            "required": ["town"],
        },
    },
}
SCHEMA = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"], "additionalProperties": False}
SAMPLING: dict[str, Any] = {
    "max_tokens": 8,
    "max_completion_tokens": 7,
    "temperature": 0.7,
    "top_p": 0.9,
    "seed": 7,
    "stop": ["zz", "."],
    "frequency_penalty": 0.1,
    "presence_penalty": -0.1,
    "min_p": 0.05,
    "logit_bias": {"65": 2.0},
    "n": 2,
    "stream": True,
    "stream_options": {"include_usage": True},
    "user": "anna",
    "metadata": {"a": "b"},
    "store": False,
    "service_tier": "auto",
    "top_k": 5,
    "repetition_penalty": 1.1,
}
CHAT: dict[str, Any] = {
    "logprobs": True,
    "top_logprobs": 3,
    "tools": [TOOL],
    "tool_choice": "auto",
    "parallel_tool_calls": False,
    "functions": [TOOL["function"]],
    "function_call": {"name": "weather"},
    "response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": SCHEMA, "strict": True}},
    "modalities": ["text"],
    "reasoning_effort": "low",
    "modelnet": {"stages": True, "record": True, "fuser": "gated:threshold=0.8", "stage_max_tokens": 4, "timeout": 30},
}
WORDS = {
    "modelnet": ("stages", "record", "fuser", "prompts", "arm", "stage_max_tokens", "timeout", "regex", "grammar"),
    "fuser": ("linear", "geometric", "union-top-k", "entropy-weighted", "gated:threshold=0.8", "gated", "linear:x=1"),
    "tool_choice": ("none", "auto", "required"),
    "role": ("system", "developer", "user", "assistant", "tool", "function"),
    "type": ("text", "json_object", "json_schema", "function", "refusal", "image_url", "message", "input_text"),
}
"""Key → words that mean something there."""


class Pairs(list[tuple[Any, Any]]):
    """A JSON object, by its pairs: a key may come twice."""


@dataclass(frozen=True, slots=True)
class Raw:
    """Text that is written into JSON as it is."""

    text: str


@dataclass(frozen=True, slots=True)
class Request:
    """One input. value: the body as JSON, where it still is some; body: its bytes. admin: for the admin port."""

    method: str
    path: bytes
    headers: tuple[tuple[bytes, bytes], ...]
    value: Any = None
    body: bytes | None = None
    admin: bool = False
    notes: tuple[str, ...] = field(default=(), compare=False)

    def payload(self) -> bytes:
        """What is sent."""
        if self.body is not None:
            return self.body
        return b"" if self.value is None else dumps(self.value).encode("utf-8", "surrogatepass")

    def noting(self, note: str, **changes: Any) -> Request:
        """The same, changed."""
        return replace(self, notes=(*self.notes, note), **changes)


def pairs(value: Any) -> Any:
    """The same with objects as pairs."""
    if isinstance(value, dict):
        return Pairs((key, pairs(item)) for key, item in value.items())
    return [pairs(item) for item in value] if isinstance(value, list) else value


def dumps(value: Any) -> str:
    """JSON, without recursion: what nests a thousand deep is to be written too."""
    parts: list[str] = []
    todo: list[Any] = [value]
    while todo:
        item = todo.pop()
        if isinstance(item, _Done):
            parts.append(item.text)
        elif isinstance(item, Pairs):
            inner: list[Any] = [_Done("{")]
            for number, (key, each) in enumerate(item):
                inner += [_Done("," if number else ""), key, _Done(":"), each]
            todo.extend(reversed([*inner, _Done("}")]))
        elif isinstance(item, list):
            inner = [_Done("[")]
            for number, each in enumerate(item):
                inner += [_Done("," if number else ""), each]
            todo.extend(reversed([*inner, _Done("]")]))
        else:
            parts.append(_scalar(item))
    return "".join(parts)


@dataclass(frozen=True, slots=True)
class _Done:
    text: str


def _scalar(value: Any) -> str:
    if isinstance(value, Raw):
        return value.text
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, int | float):
        return repr(value)
    out = ['"']
    for character in str(value):
        if character in '"\\' or character < " ":
            out.append(f"\\u{ord(character):04x}" if character < " " else f"\\{character}")
        elif "\ud800" <= character <= "\udfff":
            out.append(f"\\u{ord(character):04x}")
        else:
            out.append(character)
    return "".join(out) + '"'


def wiring(chance: random.Random) -> str:
    """A model name, most often one that can run."""
    if chance.random() < 0.5:
        return chance.choice(MODELS)

    def group(depth: int) -> str:
        return "|".join(member(depth) for _ in range(chance.choice((1, 1, 2, 2, 3))))

    def member(depth: int) -> str:
        weight = chance.choice(("", "", "", "*2", "*0.5", "*1e3", "*0", " * 3"))
        if depth and chance.random() < 0.2:
            return f"({chain(depth - 1)}){weight}"
        return chance.choice(MEMBERS) + weight

    def chain(depth: int) -> str:
        return chance.choice((">", " > ")).join(group(depth) for _ in range(chance.choice((1, 1, 2, 3))))

    return chance.choice(("", "", "", "s2p:", "p2s:", "si:", "pi:")) + chain(2)


def _picked(chance: random.Random, fields: dict[str, Any], share: float) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if chance.random() < share}


def _messages(chance: random.Random) -> list[Any]:
    said: list[Any] = [{"role": "user", "content": "What is 6 times 7?"}]
    if chance.random() < 0.2:
        said.insert(0, {"role": chance.choice(("system", "developer")), "content": "Be brief."})
    if chance.random() < 0.15:
        call = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": '{"town": "Bern"}'}}
        said += [
            {"role": "assistant", "content": None, "tool_calls": [call]},
            {"role": "tool", "tool_call_id": "c1", "content": "Rain 🌧"},
        ]
    if chance.random() < 0.2:
        said[-1] = {**said[-1], "content": [{"type": "text", "text": "What "}, {"type": "text", "text": "是?"}]}
    return said


def _chat(chance: random.Random) -> tuple[str, Any]:
    body = {"model": wiring(chance), "messages": _messages(chance)}
    return "/v1/chat/completions", body | _picked(chance, SAMPLING, 0.12) | _picked(chance, CHAT, 0.1)


def _text(chance: random.Random) -> tuple[str, Any]:
    prompt = chance.choice(("Once upon", ["one", "two"], [104, 105], [[104, 105], "x"], ""))
    body = {"model": wiring(chance), "prompt": prompt} | _picked(chance, SAMPLING, 0.12)
    return "/v1/completions", body | _picked(chance, {"echo": True, "logprobs": 2, "best_of": 1, "suffix": ""}, 0.2)


def _response(chance: random.Random) -> tuple[str, Any]:
    given = chance.choice(("Hi", [{"role": "user", "content": [{"type": "input_text", "text": "Hi"}]}]))
    shape = {"format": {"type": "json_schema", "name": "n", "schema": SCHEMA, "strict": True}}
    own: dict[str, Any] = {
        "instructions": "Be brief.",
        "max_output_tokens": 16,
        "stream": True,
        "temperature": 0.5,
        "tools": [{"type": "function", **TOOL["function"]}],  # type: ignore[dict-item]
        "tool_choice": "auto",
        "text": shape,
        "include": ["message.output_text.logprobs"],
        "top_logprobs": 2,
        "reasoning": {"effort": "low"},
        "truncation": "auto",
        "store": False,
        "metadata": {"k": "v"},
        "max_tool_calls": 2,
    }
    return "/v1/responses", {"model": wiring(chance), "input": given} | _picked(chance, own, 0.15)


def _embedding(chance: random.Random) -> tuple[str, Any]:
    given = chance.choice(("hello", ["a", "b"], [1, 2, 3], [[1, 2], [3]]))
    extra = _picked(chance, {"encoding_format": "base64", "dimensions": 8, "user": "u"}, 0.3)
    return "/v1/embeddings", {"model": chance.choice(("embed", "far", "a")), "input": given} | extra


def _tokenize(chance: random.Random) -> tuple[str, Any]:
    given = chance.choice(({"prompt": "hello 是"}, {"messages": _messages(chance)}))
    extra = _picked(chance, {"add_special_tokens": False, "return_token_strs": True}, 0.3)
    return "/tokenize", {"model": chance.choice(("a", "b", "far"))} | given | extra


def _detokenize(chance: random.Random) -> tuple[str, Any]:
    return "/detokenize", {"model": chance.choice(("a", "b", "far")), "tokens": [104, 105, 33]}


def _feedback(chance: random.Random) -> tuple[str, Any]:
    return "/v1/feedback", {"id": "chatcmpl-" + "0" * 32, "score": chance.choice((0, 1, 0.5, True))}


def _new_key(chance: random.Random) -> tuple[str, Any]:
    own = {
        "models": ["a*", "b"],
        "wirings": ["*"],
        "requests_per_minute": 60,
        "tokens_per_minute": 1000,
        "concurrency": 4,
        "budget": {"money": 5.0, "per": "month"},
        "expires": "2031-01-02T03:04:05Z",
    }
    return "/admin/keys", {"name": "team"} | _picked(chance, own, 0.4)


_POSTS = (*(_chat,) * 6, *(_text,) * 3, *(_response,) * 3, _embedding, _tokenize, _detokenize, _feedback, _new_key)
_READS = (
    *("/v1/models", "/v1/responses/resp_1", "/healthz", "/readyz", "/metrics", "/docs", "/openapi.json", "/nowhere"),
    *("/admin/keys", "/admin/keys/abc", "/admin/status", "/admin/experiments/support?days=2&metric=errors&format=html"),
)


def quoted(text: str, chance: random.Random) -> bytes:
    """A name in a path: some characters escaped, some not."""
    out = bytearray()
    for byte in text.encode("utf-8", "surrogatepass"):
        plain = 0x21 <= byte < 0x7F and byte not in b"%?#" and chance.random() < 0.7
        out += bytes([byte]) if plain else b"%%%02X" % byte
    return bytes(out)


def valid(chance: random.Random) -> Request:
    """A request as a client would send it."""
    kind = chance.random()
    if kind < 0.8:
        path, value = chance.choice(_POSTS)(chance)
        method, raw, body = "POST", path.encode(), pairs(value)
    else:
        named = kind < 0.9
        raw = b"/v1/models/" + quoted(wiring(chance), chance) if named else chance.choice(_READS).encode()
        method, body = "GET", None
    admin = raw.startswith(b"/admin")
    if admin and b"/keys/" in raw and chance.random() < 0.5:
        method, body = chance.choice((("PATCH", pairs({"concurrency": 2})), ("DELETE", None)))
    key = ADMIN if admin else STRICT if chance.random() < 0.02 else KEY
    headers = [(b"host", b"localhost"), (b"authorization", f"Bearer {key}".encode())]
    if body is not None:
        headers.append((b"content-type", b"application/json"))
    return Request(method, raw, tuple(headers), body, admin=admin)
