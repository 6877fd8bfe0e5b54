"""How tokens are to be drawn: the fields of a request → `Sampling`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from backends.types import Sampling
from gateway.wire.errors import bad_request
from gateway.wire.fields import Fields, integer, mapping, number, strings

MAX_STOPS = 4
MAX_STOP = 512
"""Characters of a stop sequence. Looking for one costs its length squared with every token."""
MAX_BIASES = 1024
_LARGEST_ID = 2**31 - 1

_NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    "top_k": (0, -1),
    "repetition_penalty": (1,),
    "length_penalty": (1,),
    "min_tokens": (0,),
    "best_of": (1,),
    "ignore_eos": (False,),
    "use_beam_search": (False,),
    "include_stop_str_in_output": (False,),
    "stop_token_ids": ([],),
    "allowed_token_ids": ([],),
    "bad_words": ([],),
    "logits_processors": ([],),
}
"""Fields that servers know beside OpenAI's and that change what is drawn → values that ask for nothing."""


def decode_sampling(fields: Fields, max_tokens: int) -> Sampling:
    """max_tokens: the most that may be asked for. Raises APIError (400)."""
    asked = integer(fields, "max_tokens", 1, max_tokens)
    newer = integer(fields, "max_completion_tokens", 1, max_tokens)
    temperature, top_p = number(fields, "temperature", 0, 2), number(fields, "top_p", 0, 1)
    if top_p == 0:  # nothing but the likeliest token: greedy, by its plain name
        temperature, top_p = 0.0, None
    return Sampling(
        max_tokens=newer if newer is not None else asked,
        temperature=temperature,
        top_p=top_p,
        seed=integer(fields, "seed", -(2**63), 2**63 - 1),
        stop=_stops(fields),
        frequency_penalty=number(fields, "frequency_penalty", -2, 2) or None,
        presence_penalty=number(fields, "presence_penalty", -2, 2) or None,
        min_p=number(fields, "min_p", 0, 1) or None,
        logit_bias=_biases(fields),
    )


def foreign_sampling(fields: Fields) -> dict[str, str]:
    """Fields that only a server of one model can honour → why. Left out, they would change the answer in silence."""
    return {
        name: f"{name} is not supported by this wiring: only a model's own server knows it."
        for name, neutral in _NEUTRAL.items()
        if name in fields and fields[name] not in neutral
    }


def _stops(fields: Fields) -> tuple[str, ...]:
    stops = strings(fields, "stop")
    if len(stops) > MAX_STOPS:
        raise bad_request(f"At most {MAX_STOPS} stop sequences are possible.", "stop")
    if any(len(stop) > MAX_STOP for stop in stops):
        raise bad_request(f"A stop sequence can have at most {MAX_STOP} characters.", "stop")
    return tuple(stop for stop in stops if stop)


def _biases(fields: Fields) -> dict[int, float]:
    """Token id → bias, without those of zero."""
    biases = mapping(fields, "logit_bias")
    if not biases:
        return {}
    if len(biases) > MAX_BIASES:
        raise bad_request(f"logit_bias can name at most {MAX_BIASES} tokens.", "logit_bias")
    found: dict[int, float] = {}
    for key in biases:
        if not (key.isascii() and key.isdecimal() and len(key) <= 10 and int(key) <= _LARGEST_ID):
            raise bad_request(f"logit_bias must have token ids as keys, not {key[:40]!r}.", "logit_bias")
        if value := number(biases, key, -100, 100, "logit_bias"):
            found[int(key)] = value
    return found
