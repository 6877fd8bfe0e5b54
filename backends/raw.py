"""Prompts that are no conversation: a text or token ids that a model reads as they are, without its chat template.

They travel where messages do, as one message of a role that no client can send, so that whatever is built on conversations
(streams, sessions, groups) works on them too. A `RawBackend` understands those with ids; a `ForwardingBackend` both, in `stream`.
"""

from __future__ import annotations

from collections.abc import Sequence

from backends.types import Message

RAW = "raw"
_IDS = "token_ids"


def raw_prompt(ids: Sequence[int]) -> tuple[Message, ...]:
    """What stands for messages. ids: of the model that is to read them, control tokens (BOS) included; at least one."""
    return (Message(RAW, "", {_IDS: tuple(ids)}),)


def raw_text(text: str) -> tuple[Message, ...]:
    """The same, as text."""
    return (Message(RAW, text),)


def is_raw(messages: Sequence[Message]) -> bool:
    """Whether this is no conversation."""
    return len(messages) == 1 and messages[0].role == RAW


def raw_ids(messages: Sequence[Message]) -> tuple[int, ...] | None:
    """The ids of a raw prompt; None for a conversation, and for a raw text."""
    if not is_raw(messages):
        return None
    ids: tuple[int, ...] | None = messages[0].extra.get(_IDS)
    return ids
