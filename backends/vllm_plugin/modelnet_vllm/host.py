"""All sessions of an API server, and what comes for them over the link."""

from __future__ import annotations

import asyncio
import itertools
import json
import secrets
from collections.abc import Sequence
from typing import Any

import numpy as np

from modelnet_vllm import early, frames, link
from modelnet_vllm.early import Reads
from modelnet_vllm.link import Listener, Wire, message
from modelnet_vllm.places import Full, Place, Places
from modelnet_vllm.sessions import SILENCE, Failure, Rows, Session


class Host:
    """All sessions of an API server.

    context: most tokens of a session, the one it would say next included. rewinds: the engine can cut a session back.
    hooks: the engine says which rows are whole, and scores drafts; True until an engine says otherwise.
    """

    def __init__(self, engine: Any, places: Places, context: int, *, rewinds: bool, hooks: bool) -> None:
        self.engine = engine
        self.places = places
        self.context = context
        self.rewinds = rewinds
        self.hooks = hooks
        self.listener = Listener(self._message, self._engine_gone)
        self._sessions: dict[int, Session] = {}
        self._waiting: dict[int, Session] = {}  # that have read early, the oldest first
        self._numbers = itertools.count(secrets.randbits(40) << 20)
        self._requests = itertools.count(1)
        self._asked: dict[int, tuple[Wire, asyncio.Future[bytes]]] = {}

    async def open(
        self, prompt: Sequence[int], k: int, room: int | None, reads: Reads = None, after: Session | None = None
    ) -> Session:
        """Wait for a place, then start reading the prompt. reads, after: see `early`; a session that is followed is taken over, or closed.

        What is read early waits for no place. Raises Failure."""
        needed = len(prompt) + (1 if room is None else max(1, room))
        if after is not None:
            self._waiting.pop(after.number, None)
        try:
            if not prompt:
                raise Failure(frames.REJECTED, "The prompt is empty.")
            if needed > self.context:
                text = f"The model can read {self.context} tokens; {needed} are needed."
                raise Failure(frames.TOO_LONG, text, needed, self.context)
            tokens = self.context if room is None else needed
            if after is not None and self._follows(after, prompt, k, tokens, reads):
                session, after = after, None
            else:
                session = await self._new(prompt, k, tokens, reads, after)
        finally:
            if after is not None:
                await after.close()
        session.told = list(prompt)
        if reads is not None:
            self._waiting[session.number] = session
        return session

    async def _new(self, prompt: Sequence[int], k: int, tokens: int, reads: Reads, after: Session | None) -> Session:
        if after is not None:
            await after.close()
        while not self.places.fits(tokens):
            if reads is not None:
                raise Failure(frames.OVERLOADED, "At capacity: no place is free for what is only read early.")
            if not self._dismiss():
                break
        try:
            place = await self.places.take(tokens)
        except Full as error:
            raise Failure(frames.OVERLOADED, f"At capacity: {error}.") from None
        session = Session(self, next(self._numbers), k, place)
        self._sessions[session.number] = session
        session.begin(prompt)
        return session

    def _follows(self, session: Session, prompt: Sequence[int], k: int, tokens: int, reads: Reads) -> bool:
        """Whether the session goes on as that of this prompt."""
        same = early.common(session.ids, prompt)
        if not self.rewinds or not session.alive or not same or (reads is not None and self.places.waiting):
            return False
        try:
            if reads is None:
                self.grow(session.place, tokens)
            else:
                self.places.grow(session.place, tokens)
        except Full:
            return False
        upto = len(prompt)
        if reads == "settled":
            upto = early.settled(prompt, session.told)
        elif reads == "blocks":
            upto -= upto % self.places.block
        if reads in (None, "whole") or upto > same:
            session.follow(prompt[:upto], k)
        return True

    def grow(self, place: Place, tokens: int) -> None:
        """Room for `tokens` in all, if need be that of sessions which only wait for their prompt. Raises `places.Full`."""
        while True:
            try:
                return self.places.grow(place, tokens)
            except Full:
                if not self._dismiss():
                    raise

    def _dismiss(self) -> bool:
        """Whether there was a session that had only read early; it is gone, and its prompt will be read once more."""
        for session in self._waiting.values():
            session.fail(Failure(frames.OVERLOADED, "The session's place was wanted."))
            return True
        return False

    def forget(self, session: Session) -> None:
        self._waiting.pop(session.number, None)
        if self._sessions.pop(session.number, None) is not None and session.wire is not None:
            session.wire.send(message(link.FORGET, link.SESSION.pack(session.number)))

    async def ask(self, wire: Wire, kind: int, head: bytes, rest: bytes = b"") -> bytes:
        """A question over the link and its answer. Between `head` and `rest` belongs the number of the request."""
        number = next(self._requests) & 0xFFFFFFFF
        future: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self._asked[number] = wire, future
        try:
            wire.send(message(kind, head, link.NUMBER.pack(number), rest))
            async with asyncio.timeout(SILENCE):
                return await future
        except TimeoutError:
            raise Failure(frames.UNAVAILABLE, "The engine does not answer.") from None
        finally:
            del self._asked[number]

    def _message(self, wire: Wire, kind: int, body: bytes) -> None:
        if kind == link.ROWS:
            number, seq, first, rows, k = link.ROWS_HEAD.unpack_from(body)
            session = self._sessions.get(number)
            if session is not None:
                session.arrived(wire, seq, first, _rows(body, rows, k))
        elif kind == link.VALUES:
            _, request = link.VALUES_HEAD.unpack_from(body)
            self._answer(request, body[link.VALUES_HEAD.size :])
        elif kind == link.ECHO:
            self._answer(link.NUMBER.unpack(body)[0], b"")
        elif kind == link.HELLO:
            wire.hello = json.loads(body)
            if not wire.hello.get("hooks"):
                self.hooks = False

    def _answer(self, request: int, data: bytes) -> None:
        asked = self._asked.get(request)
        if asked is not None and not asked[1].done():
            asked[1].set_result(data)

    def _engine_gone(self, wire: Wire) -> None:
        lost = Failure(frames.UNAVAILABLE, "The engine is gone.")
        for other, future in self._asked.values():
            if other is wire and not future.done():
                future.set_exception(lost)
        for session in list(self._sessions.values()):
            if session.wire is wire:
                session.fail(lost)


def _rows(body: bytes, rows: int, k: int) -> Rows:
    at, cells = link.ROWS_HEAD.size, rows * k
    ids = np.frombuffer(body, "<i4", cells, at).reshape(rows, k)
    logprobs = np.frombuffer(body, "<f4", cells, at + 4 * cells).reshape(rows, k)
    return ids, logprobs, np.frombuffer(body, "<f4", rows, at + 8 * cells)
