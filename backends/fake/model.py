"""A small real language model without weights.

Its law: a pure function from a token history to a probability for every token. So whatever path leads to a history (steps,
a scored draft, a rewind), the distribution there is the same to the last bit, and fusion can be checked by enumeration.
"""

from __future__ import annotations

import codecs
import hashlib
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from backends.raw import raw_ids
from backends.types import LogProbs, Message, TopK, Vocabulary

Probabilities = NDArray[np.float64]
"""float64 [vocabulary size], at least 0, adding up to 1."""

Answer = Callable[[Sequence[Message]], str]
"""What to say to a conversation."""

BYTES: tuple[bytes, ...] = tuple(bytes([value]) for value in range(256))

_WORDS = (
    " the| a| an| and| of| to| in| is| it| that| for| on| with| as| was| are| be| this| have| not| you| or| by| from| at"
    "| one| two| three| answer| question| yes| no| because| so| if| then| number| sum| there| their| them| they| we| I"
    "|the|an|and|in|is|it|ing|ed|er|es|ion|th|he|re|on|at|en|st|ly|al|Hello|Hi| world|world|The|This|Yes|No|What|How"
    "|.\n|,|, |. |: |\n\n|  |    |        |()|):|def | return|==| = | + | * |10|100|000|12"
    "|的|是|了|在|我|你|他|们|不|一|有|人|中|国|中国|中文|你好|我们|答案|问题|因为|所以|什么|，|。|？|！|世界"
    "|é|è|ü|ö|ß|ñ|¿|😀|🎉|👍|👩‍💻|🇨🇳"
)
WORDS: tuple[str, ...] = tuple(_WORDS.split("|"))
"""The default words. Some begin others (中 and 中国), some are parts of others: what fusion has to cope with."""

_CLOSING = (b'"', b"}", b"]", b">")  # what ends whatever is open, where something else forbids the end

_CONTINUATION = b"\xa0"  # completes a character that another model began and this one would not have


class FakeModel:
    """A vocabulary and a rule.

    pieces: the text tokens, ids 0..n-1, without repetition; None: the 256 bytes and `words`. Behind them stand the control
        ids `unknown`, `start` and `separator`, then two end ids. Where a prompt's text has no tokens, `unknown` stands.
    answer: the text it wants to say, from the conversation. rule: the whole law instead, from token history to
        probabilities, where a test wants to write the numbers itself.

    A prompt is rendered as `start role separator text` per turn, then `start "assistant" separator`. Where an answer
    follows the script so far, `confidence` of the probability lies on the tokens that continue it, most of it on the
    longest one; after the script's end, on the end ids, and some on what closes an open string or object (a model that must write
    JSON and would rather have ended comes to an end). An answer that has left the script (because other models have a say)
    is continued with the script from the same length on, so every answer ends. The rest of the probability is spread over
    the vocabulary, pseudo-randomly by seed and history.
    """

    def __init__(
        self,
        answer: Answer,
        *,
        words: Sequence[str] | None = None,
        pieces: Sequence[bytes] | None = None,
        seed: int = 0,
        confidence: float = 0.85,
        rule: Callable[[tuple[int, ...]], Probabilities] | None = None,
    ) -> None:
        if pieces is None:
            extra = (word.encode() for word in (WORDS if words is None else words))
            pieces = tuple(dict.fromkeys((*BYTES, *(word for word in extra if len(word) > 1))))
        if len(set(pieces)) != len(pieces) or b"" in pieces:
            raise ValueError("pieces must not be empty and must not repeat")
        n = len(pieces)
        self.answer = answer
        self.unknown, self.start, self.separator = n, n + 1, n + 2
        self.ends = (n + 3, n + 4)
        self.vocabulary = _vocabulary(pieces, self.ends)
        self._ids = {piece: id for id, piece in enumerate(pieces)}
        self._longest = max(map(len, pieces), default=1)
        self._seed = seed.to_bytes(8, "little", signed=True)
        self._confidence = confidence
        self._rule = rule
        self._said: tuple[tuple[int, ...], bytes] | None = (
            None  # the last prompt and its script: sessions ask again and again
        )

    def __len__(self) -> int:
        return len(self.vocabulary)

    # Text and tokens

    def encode(self, text: bytes) -> list[int]:
        """Greedy longest match from the left."""
        ids: list[int] = []
        at = 0
        while at < len(text):
            matches = self._matches(text[at : at + self._longest])
            ids.append(matches[0] if matches else self.unknown)
            at += len(self.vocabulary.tokens[matches[0]]) if matches else 1
        return ids

    def decode(self, ids: Sequence[int]) -> bytes:
        """The bytes of the tokens, joined."""
        return b"".join(self.vocabulary.tokens[id] for id in ids)

    def render(self, messages: Sequence[Message]) -> list[int]:
        """The prompt's token ids. A raw prompt's, with a separator behind them: its end has to show in a history."""
        if (raw := raw_ids(messages)) is not None:
            return [*raw, self.separator]
        ids: list[int] = []
        for message in messages:
            ids += [self.start, *self.encode(message.role.encode()), self.separator]
            ids += self.encode(message.content.encode())
        return [*ids, self.start, *self.encode(b"assistant"), self.separator]

    def split(self, ids: Sequence[int]) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """A history as (prompt, answer so far): the answer begins behind the last separator."""
        history = tuple(ids)
        at = len(history) - history[::-1].index(self.separator) if self.separator in history else 0
        return history[:at], history[at:]

    def messages(self, prompt: Sequence[int]) -> tuple[Message, ...]:
        """The conversation of a rendered prompt. A raw prompt is what a user said."""
        if prompt and prompt[0] != self.start:
            return (Message("user", self.decode(prompt).decode(errors="replace")),)
        turns: list[list[list[int]]] = []
        for id in prompt:
            if id == self.start:
                turns.append([[]])
            elif turns and id == self.separator:
                turns[-1].append([])
            elif turns:
                turns[-1][-1].append(id)
        texts = [[self.decode(part).decode(errors="replace") for part in turn] for turn in turns[:-1]]
        return tuple(Message(text[0], "".join(text[1:])) for text in texts)

    # The law

    def distribution(self, ids: Sequence[int]) -> Probabilities:
        """The next token's probabilities after this history."""
        history = tuple(int(id) for id in ids)
        if self._rule is not None:
            return self._rule(history)
        prompt, said = self.split(history)
        if self._said is None or self._said[0] != prompt:
            self._said = prompt, self.answer(self.messages(prompt)).encode()
        rest = _rest(self._said[1], self.decode(said))
        return self._confidence * self._following(rest) + (1 - self._confidence) * self._noise(history)

    def top(self, ids: Sequence[int], k: int) -> TopK:
        """The distribution after this history, cut to its k likeliest tokens."""
        return cut(self.distribution(ids), k)

    def _matches(self, text: bytes) -> list[int]:
        """Tokens that `text` begins with, longest first."""
        lengths = range(min(self._longest, len(text)), 0, -1)
        return [self._ids[text[:n]] for n in lengths if text[:n] in self._ids]

    def _following(self, rest: bytes) -> Probabilities:
        ids = list(self.ends) if not rest else (self._matches(rest) or [self.unknown])
        weights = 0.2 ** np.arange(len(ids), dtype=np.float64)  # the first has at least 0.8
        mass = np.zeros(len(self), dtype=np.float64)
        mass[ids] = weights / weights.sum()
        closing = [] if rest else [self._ids[text] for text in _CLOSING if text in self._ids]
        if closing:
            shares = 0.1 * 0.5 ** np.arange(1, len(closing) + 1, dtype=np.float64)
            mass *= 1.0 - shares.sum()
            mass[closing] = shares
        return mass

    def _noise(self, history: tuple[int, ...]) -> Probabilities:
        data = np.asarray(history, dtype="<i4").tobytes()
        key = int.from_bytes(hashlib.blake2b(data, digest_size=16, key=self._seed).digest(), "little")
        # Raw bits, not `Generator` methods: only the bit stream is promised to stay the same over numpy's versions.
        bits = np.random.Philox(key=key).random_raw(len(self))
        uniform = ((bits >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53
        weights = (-np.log(uniform)) ** 3
        weights[[self.unknown, self.start, self.separator]] *= 1e-9  # possible, as in real models, but never chosen
        return np.asarray(weights / weights.sum(), dtype=np.float64)


def cut(probabilities: Probabilities, k: int) -> TopK:
    """The k likeliest tokens of a full distribution; ties by id. Raises ValueError where k < 1."""
    if k < 1:
        raise ValueError("k must be at least 1")
    order = np.lexsort((np.arange(len(probabilities)), -probabilities)).astype(np.int32)
    outside = 0.0 if k >= len(order) else min(1.0, float(probabilities[order[k:]].sum()))
    return TopK(order[:k], logs(probabilities[order[:k]]), outside)


def noisy(probabilities: Probabilities, nats: float, ids: Sequence[int]) -> Probabilities:
    """As a pass over several tokens may give them: every logarithm off by up to `nats` / 2, pseudo-randomly by history, so that two of
    them are off by `nats` from each other at most."""
    data = np.asarray(ids, dtype="<i4").tobytes()
    key = int.from_bytes(hashlib.blake2b(data, digest_size=16, key=b"noise").digest(), "little")
    uniform = (np.random.Philox(key=key).random_raw(len(probabilities)) >> np.uint64(11)).astype(np.float64) * 2.0**-53
    weights = probabilities * np.exp((uniform - 0.5) * nats)
    return np.asarray(weights / weights.sum(), dtype=np.float64)


def logs(probabilities: Probabilities) -> LogProbs:
    """Natural logarithms; of 0, minus infinity."""
    with np.errstate(divide="ignore"):
        return np.log(probabilities)


def _rest(script: bytes, said: bytes) -> bytes:
    """What the script still has to say after `said`; empty: it wants to end."""
    if script.startswith(said):
        return script[len(said) :]
    decoder = codecs.getincrementaldecoder("utf-8")("ignore")
    decoder.decode(said)
    if decoder.getstate()[0]:
        return _CONTINUATION
    at = len(said)
    while at < len(script) and script[at] & 0xC0 == 0x80:
        at += 1
    return script[at:]


def _vocabulary(pieces: Sequence[bytes], ends: Sequence[int]) -> Vocabulary:
    tokens = (*pieces, *(b"" for _ in range(ends[-1] + 1 - len(pieces))))
    digest = hashlib.sha256(b"fake")
    for token in tokens:
        digest.update(len(token).to_bytes(4, "little") + token)
    digest.update(repr(tuple(ends)).encode())
    return Vocabulary(tokens, frozenset(ends), digest.hexdigest())
