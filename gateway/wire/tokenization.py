"""vLLM's `/tokenize` and `/detokenize`: requests read, and answers for models that run here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from backends.types import Message, Vocabulary
from gateway.wire.errors import bad_request
from gateway.wire.fields import Fields, array, boolean, string
from gateway.wire.messages import decode_messages


@dataclass(frozen=True, slots=True)
class Tokenize:
    """What is to be told in tokens: a text (`prompt`), or a conversation as the model would read it. strings: the tokens' texts
    are wanted too."""

    prompt: str | None
    messages: tuple[Message, ...]
    special: bool
    strings: bool


def decode_tokenize(fields: Fields, most_messages: int) -> Tokenize:
    """Raises APIError (400)."""
    prompt = string(fields, "prompt")
    messages: tuple[Message, ...] = ()
    if prompt is None:
        if "messages" not in fields:
            raise bad_request("You must provide a prompt or messages.", "prompt")
        messages, media = decode_messages(fields["messages"], most_messages)
        if media is not None:
            raise bad_request("Only text has tokens here.", media)
    special = boolean(fields, "add_special_tokens")
    return Tokenize(prompt, messages, special is not False, boolean(fields, "return_token_strs") or False)


def tokenized(ids: Sequence[int], context: int, vocabulary: Vocabulary | None) -> dict[str, Any]:
    """The answer. vocabulary: where the tokens' texts are wanted; bytes that are no whole character show as U+FFFD."""
    texts = None if vocabulary is None else [vocabulary.tokens[id].decode(errors="replace") for id in ids]
    return {"count": len(ids), "max_model_len": context, "tokens": list(ids), "token_strs": texts}


def decode_ids(fields: Fields, key: str, size: int) -> list[int]:
    """A list of token ids below `size`. Raises APIError (400)."""
    ids = array(fields, key)
    if ids is None:
        raise bad_request(f"You must provide {key}.", key)
    for index, id in enumerate(ids):
        if isinstance(id, bool) or not isinstance(id, int) or not 0 <= id < size:
            raise bad_request(
                f"{key}[{index}] must be a token id of the model, from 0 to {size - 1}.", f"{key}[{index}]"
            )
    return ids


def detokenized(ids: Sequence[int], vocabulary: Vocabulary) -> dict[str, Any]:
    """The answer. Control tokens have no text."""
    return {"prompt": b"".join(vocabulary.tokens[id] for id in ids).decode(errors="replace")}
