"""Two parts of the extension that need nothing of vLLM: who gets a place, and the socket between engine and API server."""

from __future__ import annotations

import asyncio
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from vllm_engines import extension

pytestmark = pytest.mark.anyio

places = extension("places")
link = extension("link")


async def test_places_are_given_in_the_order_of_asking() -> None:
    owner = places.Places(2, None, 16, 8)
    held = [await owner.take(1), await owner.take(1)]
    order: list[int] = []

    async def wait(n: int) -> None:
        place = await owner.take(1)
        order.append(n)
        place.release()

    tasks = [asyncio.create_task(wait(n)) for n in range(5)]
    await asyncio.sleep(0)
    assert (owner.taken, owner.waiting) == (2, 5)
    tasks[1].cancel()
    await asyncio.gather(tasks[1], return_exceptions=True)
    held[0].release()
    held[0].release()  # once more does no harm
    await asyncio.gather(*tasks, return_exceptions=True)
    assert order == [0, 2, 3, 4]
    held[1].release()
    assert (owner.taken, owner.waiting, owner._reserved) == (0, 0, 0)


async def test_a_place_given_to_one_who_is_leaving_goes_to_the_next() -> None:
    owner = places.Places(1, None, 16, 8)
    held = await owner.take(1)
    leaving, staying = asyncio.create_task(owner.take(1)), asyncio.create_task(owner.take(1))
    await asyncio.sleep(0)
    held.release()  # given to the first …
    leaving.cancel()  # … who is cancelled before it runs
    await asyncio.gather(leaving, return_exceptions=True)
    (await asyncio.wait_for(staying, 1)).release()
    assert (owner.taken, owner._reserved) == (0, 0)


async def test_room_is_reserved_in_whole_blocks_and_never_promised_twice() -> None:
    owner = places.Places(10, 64, 16, 1)
    one = await owner.take(17)
    assert one.tokens == 32
    two = await owner.take(20)
    waiting = asyncio.create_task(owner.take(1))
    await asyncio.sleep(0)
    assert owner.waiting == 1
    with pytest.raises(places.Full):
        await owner.take(1)  # the line is full
    owner.grow(one, 32)  # it has that already
    with pytest.raises(places.Full):
        owner.grow(one, 33)
    two.release()
    third = await asyncio.wait_for(waiting, 1)
    owner.grow(one, 33)
    assert owner._reserved == 48 + 16
    one.release()
    third.release()
    assert (await owner.take(10**9)).tokens == 64  # more than there is: all of it


async def test_messages_pass_in_both_directions_and_an_end_is_noticed() -> None:
    seen: list[tuple[int, bytes]] = []
    wires: list[Any] = []
    gone: list[Any] = []
    answers = threading.Event()
    forgotten: list[str] = []

    def engine_side(there: Any, kind: int, body: bytes) -> None:
        there.send(link.message(link.ECHO, body))
        answers.set()

    listener = link.Listener(lambda wire, kind, body: (wires.append(wire), seen.append((kind, body))), gone.append)
    await listener.start()
    assert (Path(listener.path).parent.stat().st_mode & 0o077) == 0  # nobody else can enter
    links = link.Links(lambda: link.message(link.HELLO, b"{}"), engine_side, forgotten.append)
    there = links.to(listener.path)
    assert links.to(listener.path) is there
    big = bytes(range(256)) * 40_000
    there.send(link.message(link.ROWS, b"1"))
    there.send(link.message(link.ROWS, big))  # more than a socket takes at once
    there.send(link.message(link.ROWS, b"3"))
    async with asyncio.timeout(5):
        while len(seen) < 4:
            await asyncio.sleep(0.01)
        assert seen == [(link.HELLO, b"{}"), (link.ROWS, b"1"), (link.ROWS, big), (link.ROWS, b"3")]
        wires[0].send(link.message(link.ASK_ECHO, b"abcd"))
        while len(seen) < 5:
            await asyncio.sleep(0.01)
        assert seen[4] == (link.ECHO, b"abcd")
        wires[0]._transport.abort()
        while not (gone and forgotten):
            await asyncio.sleep(0.01)
    there.send(b"into the void")
    assert forgotten == [listener.path]
    await listener.aclose()
    assert links.to(listener.path + "x") is None  # can't be reached: said once, never raised


async def test_an_api_server_that_does_not_read_never_blocks_the_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(link, "MOST_WAITING", 1 << 20)
    stop = asyncio.Event()

    async def deaf(_reader: asyncio.StreamReader, _writer: asyncio.StreamWriter) -> None:
        await stop.wait()

    listener = link.Listener(lambda *_: None, lambda *_: None)
    await listener.start()
    await listener.aclose()
    Path(listener.path).parent.mkdir(mode=0o700)
    server = await asyncio.start_unix_server(deaf, listener.path, limit=1024)
    try:
        links = link.Links(lambda: b"", lambda *_: None, lambda *_: None)
        there = links.to(listener.path)
        began = time.monotonic()
        for _ in range(200):
            there.send(link.message(link.ROWS, bytes(100_000)))
        assert time.monotonic() - began < 2
        assert there.closed  # it was cut instead
    finally:
        stop.set()
        server.close()
        Path(listener.path).unlink(missing_ok=True)
        Path(listener.path).parent.rmdir()
