"""Checks of the tap inside vLLM's environment, against vLLM's own interface classes. Run by test_tap.py; fails by assertion."""

from __future__ import annotations

import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import numpy as np

FORBIDDEN = ("modelnet_vllm", "modelnet_vllm.frames", "modelnet_vllm.tag", "modelnet_vllm.link", "modelnet_vllm.top",
             "modelnet_vllm.tap", "modelnet_vllm.drafts", "modelnet_vllm.places", "modelnet_vllm.vocabulary",
             "modelnet_vllm.gather", "modelnet_vllm.early")  # fmt: skip


def imports_no_torch() -> None:
    """Nothing of ours imports torch when it is imported (vLLM's own modules that v1 and v2 stand on are another matter)."""
    for name in FORBIDDEN:
        code = f"import sys, {name}; sys.exit('torch' in sys.modules)"
        assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0, name


class Captured:
    """In place of the links: what would have been sent."""

    def __init__(self) -> None:
        self.found: list[tuple[int, int, int, np.ndarray, np.ndarray, np.ndarray]] = []

    def to(self, _path: str) -> Captured:
        return self

    def send(self, data: bytes) -> None:
        from modelnet_vllm import link

        for kind, body in link.Cutter().feed(data):
            assert kind == link.ROWS
            session, seq, first, rows, k = link.ROWS_HEAD.unpack_from(body)
            at, cells = link.ROWS_HEAD.size, rows * k
            ids = np.frombuffer(body, "<i4", cells, at).reshape(rows, k)
            logprobs = np.frombuffer(body, "<f4", cells, at + 4 * cells).reshape(rows, k)
            self.found.append((session, seq, first, ids, logprobs, np.frombuffer(body, "<f4", rows, at + 8 * cells)))

    def take(self) -> dict[int, Any]:
        found = {entry[0]: entry for entry in self.found}
        assert len(found) == len(self.found)
        self.found = []
        return found


def params(session: int, seq: int = 1, k: int = 5, mode: int = 1) -> Any:
    from modelnet_vllm.tag import Tag
    from vllm import SamplingParams

    return SamplingParams(extra_args=Tag(session, seq, k, mode, 0, None, "/nowhere").extra_args())


def brute(row: Any, k: int) -> tuple[np.ndarray, np.ndarray, float]:
    """The top k by float64, ties by id."""
    values = row.double().numpy()
    lse = np.logaddexp.reduce(values)
    order = np.lexsort((np.arange(len(values)), -values))
    return order[:k], values[order[:k]] - lse, float(np.exp(values[order[k:]] - lse).sum())


def check(entry: Any, row: Any, k: int) -> None:
    ids, logprobs, outside = brute(row, k)
    np.testing.assert_array_equal(entry[3][0], ids)
    np.testing.assert_allclose(entry[4][0], logprobs, rtol=0, atol=2e-6)
    np.testing.assert_allclose(entry[5][0], outside, rtol=1e-4, atol=1e-29)


def distributions() -> None:
    """Against float64: many ties, tiny masses outside, the whole vocabulary, masked tokens."""
    import torch
    from modelnet_vllm.kept import Kept
    from modelnet_vllm.top import Distributions

    torch.manual_seed(0)
    for size, k in ((1000, 1), (1000, 20), (1000, 512), (30, 30), (30, 29), (49152, 64)):
        logits = (torch.randn(4, size) * 4).bfloat16().float()
        logits[1, 3] = 90.0  # nearly all mass on one
        logits[2, : size // 2] = -torch.inf
        logits[3] = 1.5  # all equal
        found = Distributions(logits, k)
        ids, logprobs, outside = found.arrays()
        assert ids.dtype == np.int32
        for row in range(3):
            expected_ids, expected, rest = brute(logits[row], k)
            finite = np.isfinite(expected)
            np.testing.assert_array_equal(ids[row][finite], expected_ids[finite])
            np.testing.assert_allclose(logprobs[row][finite], expected[finite], rtol=0, atol=1e-5)
            np.testing.assert_allclose(outside[row], rest, rtol=1e-3, atol=1e-29)
        assert (outside == 0).all() == (k == size)
        kept = Kept(1, found, 0)
        np.testing.assert_array_equal(kept.logprobs(ids[0]), logprobs[0])
        values = kept.logprobs(np.array([-1, size]))
        assert values is not None
        assert values[1] == -np.inf


def keeping() -> None:
    """Of the latest inputs every place is kept, in bounds; what is not kept any more is said to be gone, and never something else's."""
    import torch
    from modelnet_vllm import kept
    from modelnet_vllm.top import Distributions

    torch.manual_seed(0)
    keeping = kept.Keeping()

    def made(rows: int) -> tuple[Any, Any, Any]:
        found = Distributions(torch.randn(rows, 300), 8)
        ids, logprobs, _ = found.arrays()
        return found, ids, logprobs

    def same(number: int, seq: int, ids: Any, logprobs: Any, back: int = 0) -> None:
        values = keeping.logprobs(("x", number), seq, ids, back)
        assert values is not None
        np.testing.assert_array_equal(values, logprobs)

    def gone(number: int, seq: int, back: int = 0) -> None:
        assert keeping.logprobs(("x", number), seq, np.arange(3), back) is None

    drafted, draft_ids, draft_logprobs = made(5)
    keeping.draft(("x", 1), 7, drafted)

    def whole_draft() -> None:
        for back in range(5):
            same(1, 7, draft_ids[4 - back], draft_logprobs[4 - back], back)

    whole_draft()
    gone(1, 7, 5)
    gone(1, 6)
    gone(2, 7)
    # A batch has one row of each session, and nothing of the row before is to be had as a place back.
    found, ids, logprobs = made(3)
    keeping.batch(((("x", number), 8) for number in (1, 2, 3)), found)
    for row, number in enumerate((1, 2, 3)):
        same(number, 8, ids[row], logprobs[row])
        gone(number, 8, 1)
    whole_draft()  # the input before
    keeping.batch([(("x", 1), 9)], made(1)[0])
    whole_draft()
    assert keeping._drafted == 5
    keeping.batch([(("x", 1), 7 + kept.INPUTS)], made(1)[0])
    gone(1, 7)
    assert keeping._drafted == 0
    for later in range(kept.MOST_BATCHES + 1):  # the batch is let go, its rows are not
        keeping.batch([(("x", 9), later)], made(1)[0])
    same(2, 8, ids[1], logprobs[1])
    # Beyond the most rows of drafts the oldest keeps its last one.
    drafts = {number: made(kept.MOST_DRAFTED // 4) for number in range(10, 15)}
    for number, (found, _, _) in drafts.items():
        keeping.draft(("x", number), 1, found)
    gone(10, 1, 1)
    for number, (_, ids, logprobs) in drafts.items():
        same(number, 1, ids[-1], logprobs[-1])
        if number > 10:
            same(number, 1, ids[0], logprobs[0], len(ids) - 1)
    assert keeping._drafted == kept.MOST_DRAFTED
    keeping.forget(("x", 11))
    gone(11, 1)
    for number in range(kept.MOST_SESSIONS):
        keeping.batch([(("y", number), 1)], made(1)[0])
    gone(14, 1)
    assert keeping._drafted == 0
    keeping.forget_link("y")
    assert not keeping._sessions


def v1() -> None:
    """Rows come, go and move as vLLM says; foreign rows are no work; the logits stay as they are."""
    import torch
    from modelnet_vllm.tap import tap
    from modelnet_vllm.v1 import LogitsTap
    from vllm import SamplingParams
    from vllm.v1.sample.logits_processor import BatchUpdate, LogitsProcessor, MoveDirectionality

    captured = Captured()
    tap()._links = captured  # type: ignore[assignment]
    processor = LogitsTap(None, torch.device("cpu"), False)  # type: ignore[arg-type]
    assert isinstance(processor, LogitsProcessor)
    assert not processor.is_argmax_invariant()

    def update(removed: Any = (), added: Any = (), moved: Any = ()) -> None:
        processor.update_state(BatchUpdate(8, removed, [(row, what, [1], []) for row, what in added], moved))

    def look() -> dict[int, Any]:
        logits = torch.randn(8, 500)
        before = logits.clone()
        assert processor.apply(logits) is logits
        assert torch.equal(logits, before)
        found = captured.take()
        for session, entry in found.items():
            row = next(row for row, tag in processor.rows.items() if tag.session == session)
            check(entry, logits[row], processor.rows[row].k)
        return found

    assert look() == {}
    processor.update_state(None)
    update(
        added=[(0, SamplingParams()), (1, params(11)), (2, params(12, k=9)), (3, SamplingParams(extra_args={"x": 1}))]
    )
    assert set(look()) == {11, 12}
    processor.update_state(None)
    assert set(look()) == {11, 12}  # nothing changed
    update(moved=[(1, 0, MoveDirectionality.UNIDIRECTIONAL)])
    assert processor.rows.keys() == {0, 2}
    update(moved=[(0, 2, MoveDirectionality.SWAP)])
    assert [processor.rows[row].session for row in (0, 2)] == [12, 11]
    assert set(look()) == {11, 12}
    update(removed=[2], added=[(0, params(12, seq=2)), (5, params(13, mode=2))])
    assert set(look()) == {12}  # 11 left, 13's rows come from the hook
    update(added=[(0, SamplingParams())])  # a foreigner took the row
    update(removed=[5])
    assert processor.rows == {}
    assert look() == {}


def v2() -> None:
    """Slots, rows in any order, parts of inputs, recycled slots."""
    import torch
    from modelnet_vllm.tap import tap
    from modelnet_vllm.v2 import LogitsTap
    from vllm import SamplingParams
    from vllm.v1.worker.gpu.sample.logits_processor import (
        LogitsContext,
        LogitsProcessor,
        LogitsProcRequestState,
        build_custom_logits_processors_params_validator,
    )

    build_custom_logits_processors_params_validator(("modelnet_vllm.v2:LogitsTap",))(params(1))  # vLLM's own loader
    captured = Captured()
    tap()._links = captured  # type: ignore[assignment]
    prefill = SimpleNamespace(np=np.full(16, 10))
    states = LogitsProcRequestState(torch.device("cpu"), 16, 500, None, prefill, prefill, None)  # type: ignore[arg-type]
    processor = LogitsTap(None, states)  # type: ignore[arg-type]
    assert isinstance(processor, LogitsProcessor)
    assert not processor.add_request(3, SamplingParams())
    assert processor.add_request(4, params(21))
    assert processor.add_request(9, params(22, k=7))
    processor.apply_staged_writes()

    def look(slots: list[int], lengths: list[int]) -> dict[int, Any]:
        mapping = torch.tensor(slots)
        context = LogitsContext(
            mapping, mapping, np.array(slots), torch.zeros(len(slots)), mapping, mapping, np.array(lengths)
        )
        logits = torch.randn(len(slots), 500)
        before = logits.clone()
        assert processor.apply(logits, context) is logits
        assert torch.equal(logits, before)
        found = captured.take()
        for session, entry in found.items():
            slot = {21: 4, 22: 9}[session]
            check(entry, logits[slots.index(slot)], entry[3].shape[1])
        return found

    assert set(look([9, 3, 4], [10, 10, 10])) == {21, 22}
    assert set(look([3, 4], [10, 12])) == {21}
    assert set(look([4, 9], [5, 10])) == {22}  # a part of 21's input
    assert look([3], [10]) == {}
    assert not processor.add_request(4, SamplingParams())  # the slot has another request now
    assert set(look([9, 3, 4], [10, 10, 10])) == {22}


def gathering() -> None:
    """The hook fits this vLLM: an engine asks before it goes on, and takes what comes meanwhile."""
    import queue

    from modelnet_vllm import gather
    from vllm.v1.engine.core import EngineCoreProc

    assert gather.install()
    assert gather.install()  # once more does no harm
    waits, taken = [0.05, 0.01, 0.0], []
    inputs: queue.Queue[Any] = queue.Queue()
    core = SimpleNamespace(
        scheduler=SimpleNamespace(patience=lambda: waits.pop(0)), batch_queue=None, engines_running=False,
        input_queue=inputs, has_work=lambda: True, is_running=lambda: True,
        _handle_client_request=lambda *request: taken.append(request),
    )  # fmt: skip
    inputs.put(("add", 1))
    EngineCoreProc._process_input_queue(core)  # type: ignore[arg-type]
    assert taken == [("add", 1)]
    assert waits == [0.01, 0.0]  # nothing came within the first wait, so it went on
    core.batch_queue = ["a pass"]
    EngineCoreProc._process_input_queue(core)  # type: ignore[arg-type]
    assert waits == [0.01, 0.0]


def silence() -> None:
    """Only an input that the engine itself is done with counts as left without a frame: one that is long, or waits, does not."""
    import asyncio

    from modelnet_vllm import sessions

    outputs: asyncio.Queue[Any] = asyncio.Queue()
    done = SimpleNamespace(outputs=[SimpleNamespace(token_ids=[1])])
    row = (np.arange(4, dtype=np.int32)[None], np.full((1, 4), -2.0, np.float32), np.zeros(1, np.float32))

    async def generate(*_: Any) -> Any:
        while True:
            yield await outputs.get()

    async def check() -> None:
        host = SimpleNamespace(
            hooks=True, rewinds=True, context=99, listener=SimpleNamespace(path="x"), forget=lambda _: None,
            engine=SimpleNamespace(generate=generate), grow=lambda *_: None,
        )  # fmt: skip
        session = sessions.Session(host, 1, 4, SimpleNamespace(release=lambda: None))  # type: ignore[arg-type]
        session.begin([5, 6])
        session.arrived(None, 1, 0, row)  # type: ignore[arg-type]
        await session.step(0, [])
        second = asyncio.create_task(session.step(0, [7]))
        await asyncio.sleep(0)
        outputs.put_nowait(done)  # the first input's: late
        await asyncio.sleep(5 * sessions.SILENCE)
        assert not second.done()
        session.arrived(None, 2, 0, row)  # type: ignore[arg-type]
        await second
        third = asyncio.create_task(session.step(0, [8]))
        await asyncio.sleep(0)
        for _ in range(2):
            outputs.put_nowait(done)
        await asyncio.sleep(5 * sessions.SILENCE)
        assert isinstance(third.exception(), sessions.Failure)
        await session.close()

    sessions.SILENCE = 0.05
    asyncio.run(check())


def vocabulary() -> None:
    """A SentencePiece-style and a byte-level table."""
    from modelnet_vllm.vocabulary import table_of_json

    pieces = {"▁the": 0, "<0x0A>": 1, "x": 2, "<eos>": 3, "<unused1>": 4}
    added = [{"id": 3, "content": "<eos>", "special": True}, {"id": 5, "content": "\n\n", "special": False}]
    data = {"model": {"type": "BPE", "vocab": pieces}, "decoder": {"type": "ByteFallback"}, "added_tokens": added}
    table = table_of_json(data, (), None, 8)
    assert table.tokens[:6] == [b" the", b"\n", b"x", b"", b"<unused1>", b"\n\n"]
    assert len(table.tokens) == 8
    assert table.ends == [3]
    other = table_of_json({**data, "model": {**data["model"], "merges": ["a b"]}}, (), None, 8)  # type: ignore[dict-item]
    assert other.fingerprint != table.fingerprint


if __name__ == "__main__":
    for name in sys.argv[1:]:
        globals()[name]()
    sys.stdout.write("checked\n")
