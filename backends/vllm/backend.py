"""A model behind one or more vLLM servers."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from functools import partial
from typing import Any, TypeVar

import anyio

from backends.errors import BackendError, BackendTimeout, BackendUnavailable, CapabilityMissing
from backends.openai_http import OpenAIHTTPBackend
from backends.openai_http.wire import messages as as_json
from backends.protocol import Session
from backends.seats import Seats
from backends.types import ForwardRequest, Message, TextEvent, TextRequest, Vocabulary
from backends.vllm import frames
from backends.vllm.connection import Connection
from backends.vllm.forwarding import Forwarding
from backends.vllm.reading import VLLMReading
from backends.vllm.replica import Replica
from backends.vllm.session import VLLMSession
from backends.vllm.settings import VLLMSettings
from backends.vllm.warmth import Warmth

T = TypeVar("T")

_OF_PROMPTS = ("chat_template_kwargs", "chat_template")
"""Fields of `extra_body` that shape a rendered prompt."""


class VLLMBackend:
    """A `TokenBackend` on vLLM. Whether it really opens sessions, `why_not_fused` says."""

    def __init__(self, name: str, settings: VLLMSettings) -> None:
        self._name = name
        self._settings = settings
        self._seats = Seats(name, settings.seats, settings.queue)
        self._replicas = [Replica(name, settings, url) for url in settings.urls]
        self._warmth = Warmth()
        self._vocabulary: Vocabulary | None = None
        self._fetching = anyio.Lock()
        self._closed = False

    @property
    def name(self) -> str:
        return self._name

    @property
    def admitted(self) -> int:
        """Streams and sessions that hold a seat now."""
        return self._seats.taken

    @property
    def loads(self) -> list[int]:
        """Streams and sessions on every server, in the order of `urls`."""
        return [replica.load for replica in self._replicas]

    @property
    def seats(self) -> Seats:
        """See `backends.protocol.SeatedBackend`."""
        return self._seats

    @property
    def replicas(self) -> int:
        """See `backends.protocol.ReplicatedBackend`."""
        return len(self._replicas)

    @property
    def replicas_out(self) -> int:
        """See `backends.protocol.ReplicatedBackend`."""
        return sum(replica.out for replica in self._replicas)

    async def start(self) -> None:
        """With `sessions: on`, shake hands: raises CapabilityMissing with the reason where no token sessions can be opened,
        BackendUnavailable where no server can be reached."""
        if self._settings.sessions == "on":
            await self.vocabulary()

    async def ready(self) -> None:
        """Returns once one of the servers answers; raises what the last one said if none does."""
        self._check_open()
        error: BackendError | None = None
        for replica in self._in_order():
            try:
                await replica.text.ready()
            except BackendError as found:
                replica.failed()
                error = found
            else:
                replica.reached()
                return
        assert error is not None
        raise error

    async def aclose(self) -> None:
        self._closed = True
        for replica in self._replicas:
            await replica.aclose()

    # Text

    @asynccontextmanager
    async def stream(self, request: TextRequest) -> AsyncIterator[AsyncIterator[TextEvent]]:
        async with await self._seats.take(), AsyncExitStack() as stack:
            self._check_open()
            error: BackendError | None = None
            for replica in self._in_order(request.messages):
                attempt = await stack.enter_async_context(AsyncExitStack())
                attempt.enter_context(_counted(replica))
                try:
                    events = await attempt.enter_async_context(replica.text.stream(request))
                except BackendUnavailable as found:
                    replica.failed()
                    error = found
                    await attempt.aclose()
                except BackendTimeout:
                    replica.failed()
                    raise
                else:
                    replica.reached()
                    with replica.watched():
                        yield events
                    return
            assert error is not None
            raise error

    def forward(self, request: ForwardRequest) -> Forwarding:
        """See `backends.protocol.ForwardingBackend`."""
        self._check_open()
        return Forwarding(self._seats, self._in_order, request)

    # What servers have beside chat

    async def embed(self, fields: Mapping[str, Any]) -> dict[str, Any]:
        """See `backends.protocol.EmbeddingBackend`."""
        return await self._aside(lambda server: server.embed(fields))

    async def tokenize(self, fields: Mapping[str, Any]) -> dict[str, Any]:
        """See `backends.protocol.TokenizerBackend`."""
        return await self._aside(lambda server: server.tokenize(fields))

    async def detokenize(self, fields: Mapping[str, Any]) -> dict[str, Any]:
        """See `backends.protocol.TokenizerBackend`."""
        return await self._aside(lambda server: server.detokenize(fields))

    async def _aside(self, ask: Callable[[OpenAIHTTPBackend], Awaitable[T]]) -> T:
        """One call to the server that has least to do, of those that can be reached."""
        async with await self._seats.take():
            self._check_open()
            error: BackendError | None = None
            for replica in self._in_order():
                try:
                    with _counted(replica):
                        answer = await ask(replica.text)
                except BackendUnavailable as found:
                    replica.failed()
                    error = found
                else:
                    replica.reached()
                    return answer
            assert error is not None
            raise error

    # Tokens

    async def vocabulary(self) -> Vocabulary:
        """From the server, once. Raises CapabilityMissing where it has none, BackendUnavailable, BackendTimeout."""
        async with self._fetching:
            if self._vocabulary is None:
                replica, (tokens, ends, fingerprint) = await self._somewhere(Connection.table)
                replica.load -= 1
                self._vocabulary = Vocabulary(tuple(tokens), frozenset(ends), fingerprint)
        return self._vocabulary

    async def why_not_fused(self) -> str | None:
        """None if it opens token sessions, else the reason, as of now: an extension may be installed later. Never raises."""
        if self._settings.sessions == "off":
            return "token sessions are switched off for it"
        try:
            await self.vocabulary()
        except CapabilityMissing as error:
            return error.message.split("opens no token sessions: ", 1)[-1].rstrip(".")
        except BackendError as error:
            return f"its server could not be asked whether it opens token sessions ({type(error).__name__})"
        return None

    @asynccontextmanager
    async def open(
        self,
        messages: Sequence[Message],
        *,
        k: int,
        max_tokens: int | None = None,
        reading: VLLMReading | None = None,
    ) -> AsyncIterator[Session]:
        """See `backends.protocol.TokenBackend`. reading: of these messages, to go on from."""
        if k < 1:
            raise ValueError("k must be at least 1")
        if self._settings.sessions == "off":
            raise CapabilityMissing(self._name, f"Model {self._name!r} opens no token sessions: they are switched off.")
        async with await self._seats.take() as seat:
            vocabulary = await self.vocabulary()
            most = min(k, len(vocabulary))

            async def opening(connection: Connection) -> VLLMSession:
                prompt = self.prompt(messages)
                if reading is not None:
                    prompt = await reading.followed(connection, prompt)
                number = connection.new_session()
                try:
                    return await self.begin(connection, number, prompt, most, max_tokens, seat.release)
                except BaseException:
                    # Whoever wanted it is gone, or it came too late: nothing of it is to be left.
                    with anyio.CancelScope(shield=True):
                        await connection.end_session(number)
                    raise

            own = None if reading is None else reading.replica
            replica, session = await self._somewhere(opening, vocabulary, messages, own)
            try:
                yield session
            finally:
                replica.load -= 1
                with anyio.CancelScope(shield=True):
                    await session.close()

    def reading(self, *, k: int | None) -> VLLMReading:
        """See `backends.protocol.PreparingBackend`."""
        return VLLMReading(self, k)

    # For `reading`

    @property
    def readings(self) -> int:
        """That are under way, or have a session."""
        return sum(replica.readings for replica in self._replicas)

    def may_read(self, messages: Sequence[Message], own: Replica | None) -> Replica:
        """The server that is to read these. own: which counts this reading already. Raises BackendUnavailable, CapabilityMissing."""
        self._check_open()
        if self._settings.sessions == "off":
            raise CapabilityMissing(self._name, f"Model {self._name!r} opens no token sessions: they are switched off.")
        return self._in_order(messages, own)[0]

    def warmed(self, messages: Sequence[Message], replica: Replica) -> None:
        self._warmth.warmed(messages, replica)

    def prompt(self, messages: Sequence[Message]) -> dict[str, Any]:
        extra = {key: value for key, value in self._settings.extra_body.items() if key in _OF_PROMPTS}
        return {**extra, "messages": as_json(messages)}

    async def begin(
        self,
        connection: Connection,
        number: int,
        prompt: dict[str, Any],
        k: int,
        room: int | None,
        freed: Callable[[], None],
    ) -> VLLMSession:
        """A session of this number. freed: called when it is closed. Whatever is raised, a CLOSE is owed to the server."""
        make = partial(frames.Open, number, k=min(k, frames.MOST_K), room=room, prompt=prompt)
        times = self._settings.first_byte_timeout, self._settings.step_timeout
        opened = await connection.ask(frames.Opened, make, times[0])
        return VLLMSession(
            self._name, connection, number, opened.prompt_tokens, times, freed, self._settings.draft_noise
        )

    # Servers

    async def _somewhere(
        self,
        use: Callable[[Connection], Awaitable[T]],
        vocabulary: Vocabulary | None = None,
        messages: Sequence[Message] = (),
        own: Replica | None = None,
    ) -> tuple[Replica, T]:
        """`use` on the server that has least to do, of those that can be reached; counted in its `load`.

        Raises what the last one said; if one of them can't open sessions at all, that.
        """
        self._check_open()
        error: BackendError | None = None
        for replica in self._in_order(messages, own):
            replica.load += 1
            try:
                result = await self._there(replica, use, vocabulary)
            except CapabilityMissing as found:
                replica.load -= 1
                error = found
            except (BackendUnavailable, BackendTimeout) as found:
                replica.load -= 1
                replica.failed()
                error = error if isinstance(error, CapabilityMissing) else found
            except BaseException:
                replica.load -= 1
                raise
            else:
                replica.reached()
                return replica, result
        assert error is not None
        raise error

    async def _there(
        self, replica: Replica, use: Callable[[Connection], Awaitable[T]], vocabulary: Vocabulary | None
    ) -> T:
        connection = await replica.connection()
        self.fits(connection, vocabulary)
        try:
            return await use(connection)
        except BackendUnavailable:
            if connection.lost is None:
                raise
        # It was lost since it was used last, and the server may be back already.
        connection = await replica.connection()
        self.fits(connection, vocabulary)
        return await use(connection)

    def fits(self, connection: Connection, vocabulary: Vocabulary | None) -> None:
        info = connection.info
        if info.get("why_not") or not info.get("sessions"):
            reason = info.get("why_not") or "its server has no places for them"
            raise CapabilityMissing(self._name, f"Model {self._name!r} opens no token sessions: {reason}.")
        if vocabulary is not None and info.get("fingerprint") != vocabulary.fingerprint:
            reason = "its servers have different tokenizers"
            raise CapabilityMissing(self._name, f"Model {self._name!r} opens no token sessions: {reason}.")

    def _in_order(self, messages: Sequence[Message] = (), own: Replica | None = None) -> list[Replica]:
        """Whom to ask first, of whom it would be best that they read these messages (`Warmth`)."""
        return self._warmth.in_order(self._replicas, messages, own)

    def _check_open(self) -> None:
        if self._closed:
            raise BackendUnavailable(self._name, f"Model {self._name!r} is closed.")


@contextmanager
def _counted(replica: Replica) -> Iterator[None]:
    replica.load += 1
    try:
        yield
    finally:
        replica.load -= 1
