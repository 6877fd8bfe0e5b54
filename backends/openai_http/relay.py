"""A server's answer as the client is to see it, passed on as it comes. Pure: bytes in, whole events out.

What is changed, and nothing else:
    - `model` is the name that the client asked for; one id, created and object over a whole stream
    - the first delta of every choice is the role and an empty content, no later one has a role; every choice has a finish, and nothing of
      it follows that
    - usage only where it was asked for, once, in a chunk of its own before [DONE], estimated where the server tells none; no other chunk
      without choices
    - [DONE] exactly once, and only if the answer is whole; an error of the server's is raised, not passed on
    - lines of the event stream that are no data are dropped, comments excepted

Model: most chunks of a stream differ in one string only, the text that they add. So a chunk that was parsed is kept as a template, the
bytes before that string and those behind it, and bytes that are nothing but chunks of this form are passed on unparsed, or with the
model's name replaced. Strings of JSON hold no bare quotation marks and no line breaks, so nothing else can look like it. All other
chunks are parsed. Cost: linear in the bytes, however they are cut.
"""

from __future__ import annotations

import time
import uuid
from typing import Any, Literal

import orjson

from backends.errors import BackendError, BackendUnavailable
from backends.estimate import ESTIMATED, Tally
from backends.openai_http.failures import from_event, not_protocol
from backends.openai_http.forms import Form, form_of
from backends.openai_http.mending import Calls, mend_choice, mend_reason
from backends.openai_http.spent import read_usage, texts_of, usage_value
from backends.openai_http.splice import with_model
from backends.types import Usage

UsageWanted = Literal["no", "once", "always"]

LONGEST_EVENT = 4 * 1024 * 1024
"""Bytes."""
_LESSONS = 8
"""Chunks per stream that may be tried as a template."""
_FAILED = frozenset({"error", "abort"})
"""Finish reasons of routers and engines that lost the request: no success."""


class Relay:
    """The stream of one answer. `feed` it, until `over`; `finish` it where the server ends it without [DONE].

    model: for errors, the catalogue name. shown: the client's name for it. choices: how many were asked for. usage: what the client
    wants of it; "always" is in every chunk, as vLLM's `continuous_usage_stats`. prompt: its tokens, estimated. spent: the usage that the
    server told, None if nothing yet. wrote: text of the answer (or a tool call) has come. failure: what is wrong with what came after
    the bytes given last; raise it then. one_call: as of `Calls`.
    """

    __slots__ = (
        "_called", "_choices", "_cr", "_finished", "_form", "_introduced", "_lessons", "_model", "_one_call", "_parts", "_prompt",
        "_same", "_shown", "_size", "_tally", "_texts", "_usage", "_usage_held", "failure", "over", "spent", "wrote",
    )  # fmt: skip

    def __init__(
        self, model: str, shown: str, choices: int, usage: UsageWanted, prompt: int = 0, *, one_call: bool = False
    ) -> None:
        self._one_call = one_call
        self._model = model
        self._shown = shown
        self._choices = choices
        self._usage = usage
        self._prompt = prompt
        self._tally = Tally()
        self._called: dict[int, Calls] = {}
        self._usage_held: dict[str, Any] | None = None  # the chunk that tells it, before [DONE]
        self._same: dict[str, Any] = {}  # in all chunks, taken from the first
        self._introduced: set[int] = set()
        self._finished: set[int] = set()
        self._texts: set[int] = set()  # choices of a text completion
        self._form: Form | None = None
        self._lessons = _LESSONS if choices == 1 else 0
        self._parts: list[bytes] = []  # of an event that is not whole
        self._size = 0
        self._cr = False  # the last byte was \r: a \n now belongs to it
        self.spent: Usage | None = None
        self.wrote = False
        self.over = False
        self.failure: BackendError | None = None

    def feed(self, data: bytes) -> bytes:
        """What the client gets of these bytes: whole events, or nothing yet."""
        form = self._form
        if form is not None and not self._parts and not self._cr:
            end, pieces = form.run(data, 0)
            if end == len(data):
                tally = self._tally
                tally.pieces += pieces
                tally.size += end - pieces * form.size
                return form.written(data)
        return self._events(self._whole(data))

    def finish(self) -> bytes:
        """The server has ended its answer. Sets `failure` where it was not whole."""
        if self._settled():
            return b""
        rest = b"".join(self._parts)
        self._parts = []
        # Servers forget the last blank line.
        given = self._events(rest.rstrip(b"\n") + b"\n\n") if rest.strip() else b""
        if self._settled():
            return given
        if not self._finished or self._introduced - self._finished:
            message = f"The server of model {self._model!r} broke off in the middle of its answer."
            self.failure = BackendUnavailable(self._model, message)
            return given
        return given + self._done()

    @property
    def usage(self) -> Usage | None:
        """What the answer took by now; an estimate where the server has not told it. None: nothing came."""
        if self.spent is None and (self._tally.pieces or self.over):
            return self._tally.usage(self._prompt)
        return self.spent

    def _settled(self) -> bool:
        return self.over or self.failure is not None

    # Events

    def _whole(self, data: bytes) -> bytes:
        """The whole events that are here now; the rest is kept. Lines end with \\n from here on."""
        if self._cr or b"\r" in data:
            if self._cr and data[:1] == b"\n":
                data = data[1:]
            self._cr = data[-1:] == b"\r"
            # JSON has no raw line breaks, so all of them are the stream's own.
            data = data.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        if self._parts:
            # The blank line may begin in what is kept.
            last = self._parts[-1]
            if b"\n\n" not in data and not (last.endswith(b"\n") and data.startswith(b"\n")):
                return self._kept(data)
            data = b"".join(self._parts) + data
            self._parts, self._size = [], 0
        end = data.rfind(b"\n\n") + 2
        if end == 1:
            return self._kept(data)
        if end < len(data):
            self._kept(data[end:])
        return data[:end]

    def _kept(self, data: bytes) -> bytes:
        if data:
            self._parts.append(data)
            self._size += len(data)
            if self._size > LONGEST_EVENT:
                self.failure = not_protocol(self._model, "an event is too long")
        return b""

    def _events(self, whole: bytes) -> bytes:
        given: list[bytes] = []
        at = 0
        while at < len(whole) and not self._settled():
            form = self._form
            if form is not None:
                end, pieces = form.run(whole, at)
                if pieces:
                    given.append(form.written(whole[at:end]))
                    self._tally.pieces += pieces
                    self._tally.size += end - at - pieces * form.size
                    at = end
                    continue
            end = whole.index(b"\n\n", at)
            event = whole[at:end].strip(b"\n")
            at = end + 2
            try:
                given.append(self._event(event))
            except BackendError as error:
                self.failure = error
        return b"".join(given)

    def _event(self, event: bytes) -> bytes:
        """One event, without the blank line behind it. Raises a BackendError for a failure of the server's."""
        comments = name = b""
        if event.startswith(b"data:") and b"\n" not in event:
            data = event[5:]
        else:
            lines = event.removeprefix(b"\xef\xbb\xbf").split(b"\n")
            comments = b"".join(line + b"\n\n" for line in lines if line.startswith(b":"))
            data = b"\n".join(line[5:] for line in lines if line.startswith(b"data:"))
            name = b"".join(line[6:].strip() for line in lines if line.startswith(b"event:"))
        data = data.strip()
        if not data:
            return comments
        if data == b"[DONE]":
            return comments + self._done()
        try:
            chunk = orjson.loads(data)
        except orjson.JSONDecodeError:
            raise not_protocol(self._model, data.decode(errors="replace")) from None
        if not isinstance(chunk, dict):
            raise not_protocol(self._model, chunk)
        if chunk.get("error"):
            raise from_event(self._model, chunk)
        if name == b"error":
            raise from_event(self._model, {"error": chunk})
        return comments + self._chunk(chunk, data)

    def _done(self) -> bytes:
        self.over = True
        ends = b"".join(map(self._end, sorted(self._introduced - self._finished)))
        told = self._usage_held
        if told is None and self._usage != "no" and self._same and self.usage is not None:
            told = {**self._same, "choices": [], "usage": usage_value(self.usage), "modelnet": ESTIMATED}
        return ends + (b"" if told is None else _event(told)) + b"data: [DONE]\n\n"

    def _end(self, index: int) -> bytes:
        """The last chunk of a choice whose server says that all is over, and never why."""
        said: dict[str, Any] = {"text": ""} if index in self._texts else {"delta": {}}
        called = self._called.get(index)
        reason = "tool_calls" if called is not None and called.any else "stop"
        choice = {"index": index, **said, "logprobs": None, "finish_reason": reason}
        return self._rest(index, {}) + _event({**self._same, "choices": [choice]})

    def _rest(self, index: int, delta: dict[str, Any]) -> bytes:
        """What a choice that is over has not said of its calls. delta: of its last chunk, which may be of calls too."""
        called = self._called.get(index)
        rest = [] if called is None else called.rest()
        if not rest:
            return b""
        if delta.get("tool_calls"):  # and they may begin there
            delta["tool_calls"] += rest
            return b""
        choice = {"index": index, "delta": {"tool_calls": rest}, "logprobs": None, "finish_reason": None}
        return _event({**self._same, "choices": [choice]})

    # Chunks

    def _chunk(self, chunk: dict[str, Any], data: bytes) -> bytes:
        if not self._same:
            if not (chunk.get("id") or chunk.get("choices") or chunk.get("usage")):
                return b""  # Azure's first one is of the prompt, and says nothing of the answer
            self._same = identity(chunk, "chat.completion.chunk", self._shown)
        chunk |= self._same
        self._meter(chunk)
        listed = chunk.get("choices")
        choices = listed if isinstance(listed, list) else []
        before = b""
        kept = []
        for choice in choices:
            index = choice.get("index", 0) if isinstance(choice, dict) else None
            if isinstance(index, int) and index not in self._finished:
                before += self._choice(index, choice)
                kept.append(choice)
        if not kept:
            return b""
        chunk["choices"] = kept
        if self._lessons and not self._finished:
            self._lessons -= 1
            self._form = form_of(data, chunk) or self._form
        return before + _event(chunk)

    def _meter(self, chunk: dict[str, Any]) -> None:
        """Reads the usage, and takes it out of the chunk: clients expect it in one of its own, at the end."""
        usage = chunk.get("usage")
        if not isinstance(usage, dict):
            return
        told = read_usage(usage)
        if told.prompt_tokens or told.completion_tokens:  # nothing at all is what some servers say that do not count
            self.spent = told
            if self._usage != "no":
                self._usage_held = {**chunk, "choices": []}
        if self._usage != "always":
            del chunk["usage"]

    def _choice(self, index: int, choice: dict[str, Any]) -> bytes:
        """Reads and mends a choice; gives what has to come before it."""
        if choice.get("finish_reason") == "":
            choice["finish_reason"] = None  # some servers' word for it
        if choice.get("delta") is None and "text" not in choice:
            # What is said beside the text only (Azure's filter); clients look into it.
            if self._same["object"] == "text_completion":
                choice["text"] = ""
            else:
                choice["delta"] = {}
        delta = choice.get("delta")
        before = b""
        if isinstance(delta, dict):
            if index not in self._introduced:
                before = self._introduction(index, delta)
            else:
                delta.pop("role", None)
            if "tool_calls" in delta:
                self._called.setdefault(index, Calls(self._one_call)).mend(delta)
            if delta.get("content") or delta.get("tool_calls") or delta.get("refusal"):
                self.wrote = True
        elif "text" in choice:  # of a text completion: it has no roles
            self._introduced.add(index)
            self._texts.add(index)
            self.wrote = self.wrote or bool(choice["text"])
        self._tally.saw(*texts_of(choice))
        if choice.get("finish_reason") is not None:
            _check(self._model, choice)
            if isinstance(delta, dict):
                mend_reason(choice)
                if choice["finish_reason"] != "length":  # what was cut off is not to look whole
                    before += self._rest(index, delta)
            self._finished.add(index)
            self._form = None
            self._lessons = 0
        return before

    def _introduction(self, index: int, delta: dict[str, Any]) -> bytes:
        """Makes the first delta of a choice the role with an empty content; an event of its own where the server's says more.

        Choices before it that the server has said nothing of are introduced too: the official client fails over a choice that comes
        before its place.
        """
        new = {*range(min(index, self._choices)), index} - self._introduced
        self._introduced |= new
        if delta.get("role") and (delta.get("content") == "" or not any(delta[key] for key in delta if key != "role")):
            delta["content"] = ""
            new.discard(index)
        else:
            delta.pop("role", None)
        return b"".join(map(self._first_delta, sorted(new)))

    def _first_delta(self, index: int) -> bytes:
        first = {"role": "assistant", "content": ""}
        choices = [{"index": index, "delta": first, "logprobs": None, "finish_reason": None}]
        return _event({**self._same, "choices": choices})


def whole_answer(
    model: str, shown: str, data: bytes, prompt: int = 0, *, one_call: bool = False
) -> tuple[bytes, Usage]:
    """An answer that is not streamed: the same with the client's name for the model, and its usage. prompt: its tokens, estimated.
    one_call: as of `Calls`.

    Raises a BackendError for a failure of the server's, or what is no answer.
    """
    try:
        answer = orjson.loads(data)
    except orjson.JSONDecodeError:
        raise not_protocol(model, data[:2000].decode(errors="replace")) from None
    if isinstance(answer, dict) and answer.get("error"):
        raise from_event(model, answer)
    if not isinstance(answer, dict) or not isinstance(answer.get("choices"), list):
        raise not_protocol(model, data[:2000].decode(errors="replace"))
    mended = False
    for choice in answer["choices"]:
        if isinstance(choice, dict):
            _check(model, choice)
            mended = mend_choice(choice, one_call=one_call) or mended
    told = answer.get("usage")
    usage = read_usage(told) if isinstance(told, dict) else Usage()
    if not (usage.prompt_tokens or usage.completion_tokens):
        tally = Tally()
        for choice in answer["choices"]:
            tally.saw(*texts_of(choice))
        usage, mended = tally.usage(prompt), True
        answer |= {"usage": usage_value(usage), "modelnet": ESTIMATED}
    return _written(answer, shown, None if mended else data), usage


def _check(model: str, choice: dict[str, Any]) -> None:
    """Raises a BackendError where a server says so that it failed."""
    reason = choice.get("finish_reason")
    if isinstance(reason, str) and reason in _FAILED:
        raise from_event(model, {"error": {"message": f"finish_reason {reason}"}})


def _written(answer: dict[str, Any], shown: str, data: bytes | None) -> bytes:
    """With the client's name for the model. data: the answer as the server wrote it, if it says the same."""
    same = identity(answer, "chat.completion", shown)
    if data is not None:
        changed = [key for key, value in same.items() if answer.get(key) != value]
        if not changed:
            return data
        if changed == ["model"] and isinstance(answer.get("model"), str):
            spliced = with_model(data, orjson.dumps(shown))
            if spliced is not None:
                return spliced
    return orjson.dumps({**answer, **same})


def identity(answer: dict[str, Any], kind: str, shown: str) -> dict[str, Any]:
    """id, object, created and model of an answer; made up where the server does not say. kind: the object then."""
    id, object, created = answer.get("id"), answer.get("object"), answer.get("created")
    return {
        "id": id if isinstance(id, str) and id else f"chatcmpl-{uuid.uuid4().hex}",
        "object": object if isinstance(object, str) and object else kind,
        "created": created if isinstance(created, int) else int(time.time()),
        "model": shown,
    }


def _event(value: dict[str, Any]) -> bytes:
    return b"data: " + orjson.dumps(value) + b"\n\n"
