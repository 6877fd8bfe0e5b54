"""Which server has read the beginning of a conversation already."""

from __future__ import annotations

from collections.abc import Sequence

from backends.types import Message
from backends.vllm.replica import Replica

MOST = 1024
"""Conversations that are remembered."""
HEAD = 64
"""Characters of each message that tell conversations apart. Few, so that the answer which grows in the last message is not among them;
conversations that are alike so far share a beginning in any case."""
WORTH = 1.5
"""Streams and sessions that such a server may have more than the least loaded one, and is still preferred."""


class Warmth:
    """Of one model's servers."""

    def __init__(self) -> None:
        self._where: dict[int, Replica] = {}

    def warmed(self, messages: Sequence[Message], replica: Replica) -> None:
        """It has read these, or a part of them."""
        key = _key(messages)
        self._where.pop(key, None)
        self._where[key] = replica
        if len(self._where) > MOST:
            del self._where[next(iter(self._where))]

    def in_order(
        self, replicas: Sequence[Replica], messages: Sequence[Message], own: Replica | None = None
    ) -> list[Replica]:
        """Whom to ask first: the least loaded, where one that has read the messages may have a little more to do; those that could not
        be reached lately last, as a last hope. own: one that counts a reading of whoever asks."""
        warm = self._where.get(_key(messages)) if messages and self._where else None

        def key(each: Replica) -> tuple[bool, float]:
            return each.out, each.load + each.readings - (each is own) - WORTH * (each is warm)

        return sorted(replicas, key=key)


def _key(messages: Sequence[Message]) -> int:
    """A number only, so that nothing of what clients write is kept."""
    return hash(tuple((message.role, message.content[:HEAD]) for message in messages))
