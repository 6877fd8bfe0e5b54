"""The protocol: both copies speak the same bytes, which are written down here once more."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from vllm_engines import PLUGIN, extension

from backends.vllm import frames

theirs = extension("frames")

I4 = np.array([[5, 2], [7, -1]], np.int32)
F4 = np.array([[-0.5, -1.5], [-0.25, -3.0]], np.float32)
OUT = np.array([0.25, 1e-30], np.float32)

EXAMPLES = [
    (lambda f: f.Hello(1, 2, 10.0, "gw"), b"\x01" + bytes(11) + b"MNGW" + struct.pack("<HHf", 1, 2, 10.0) + b"gw"),
    (lambda f: f.Welcome(1, {"a": 1}), b"\x02" + bytes(11) + b"\x01\x00" + b'{"a": 1}'),
    (lambda f: f.Refused(3, 4, "no"), b"\x03" + bytes(11) + struct.pack("<HH", 3, 4) + b"no"),
    (
        lambda f: f.Open(7, 9, 64, None, np.array([1, 2], np.int32)),
        b"\x10\0\0\0" + struct.pack("<IIHBBIii", 7, 9, 64, 0, 0, 0xFFFFFFFF, 1, 2),
    ),
    (
        lambda f: f.Open(7, 9, 64, 5, {"messages": []}),
        b"\x10\0\0\0" + struct.pack("<IIHBBI", 7, 9, 64, 1, 0, 5) + b'{"messages": []}',
    ),
    (lambda f: f.Opened(7, 9, 41), b"\x11\0\0\0" + struct.pack("<III", 7, 9, 41)),
    (lambda f: f.Step(7, 9, 3, [4, 5]), b"\x12\0\0\0" + struct.pack("<IIIii", 7, 9, 3, 4, 5)),
    (lambda f: f.Score(7, 9, 0, [4]), b"\x13\0\0\0" + struct.pack("<IIIi", 7, 9, 0, 4)),
    (
        lambda f: f.Tops(7, 9, I4, F4, OUT),
        b"\x14\0\0\0" + struct.pack("<IIHH4i4f2f", 7, 9, 2, 2, *I4.ravel(), *F4.ravel(), *OUT),
    ),
    (lambda f: f.Lookup(7, 9, [4]), b"\x15\0\0\0" + struct.pack("<IIi", 7, 9, 4)),
    (lambda f: f.Lookup(7, 9, [4], 258), b"\x15\0\x02\x01" + struct.pack("<IIi", 7, 9, 4)),
    (lambda f: f.Values(7, 9, OUT[:0]), b"\x16\0\0\0" + struct.pack("<II", 7, 9)),
    (lambda f: f.Values(7, 9, OUT), b"\x16\0\0\0" + struct.pack("<II2f", 7, 9, *OUT)),
    (lambda f: f.Close(7), b"\x17\0\0\0" + struct.pack("<II", 7, 0)),
    (lambda f: f.Vocab(9), b"\x20\0\0\0" + struct.pack("<II", 0, 9)),
    (lambda f: f.TablePart(9, 1, 3, b"xyz"), b"\x21\0\0\0" + struct.pack("<IIII", 0, 9, 1, 3) + b"xyz"),
    (lambda f: f.Fail(7, 9, 2, "é", 3, 4), b"\x30\0\0\0" + struct.pack("<IIHHII", 7, 9, 2, 0, 3, 4) + "é".encode()),
    (lambda f: f.Beat(), b"\x40" + bytes(11)),
]


def test_both_sides_have_the_same_file() -> None:
    ours = Path(str(frames.__file__)).read_bytes()
    assert ours == (PLUGIN / "frames.py").read_bytes()


@pytest.mark.parametrize(("make", "data"), EXAMPLES, ids=lambda value: "")
def test_the_bytes_are_as_documented(make: object, data: bytes) -> None:
    """A change of these needs a new protocol version."""
    for side in (frames, theirs):
        frame = make(side)  # type: ignore[operator]
        assert frame.encode() == data
        assert side.decode(data).encode() == data


@given(st.binary(max_size=200))
def test_any_bytes_are_a_frame_or_a_frame_error(data: bytes) -> None:
    try:
        frame = frames.decode(data)
    except frames.FrameError:
        return
    frames.decode(frame.encode())


@given(st.lists(st.binary(max_size=9), max_size=40), st.sets(st.integers(0, 2**31 - 1), max_size=4))
def test_a_vocabulary_survives(tokens: list[bytes], ends: set[int]) -> None:
    data = theirs.encode_table(tokens, sorted(ends), "ab12")
    assert frames.decode_table(data) == (tokens, sorted(ends), "ab12")


def test_versions_meet_or_say_who_is_older() -> None:
    assert frames.agree(1, 1) == 1
    assert frames.agree(1, 9) == 1
    assert frames.agree(2, 9) is None
    assert "upgrade the gateway" in frames.disagreement((1, 1), (2, 3))
    assert "upgrade the vLLM extension" in frames.disagreement((4, 5), (2, 3))


def test_a_mark_is_bytes_and_survives() -> None:
    tag = extension("tag")
    for keep in (None, 0, 41):
        mark = tag.Tag(2**60 + 1, 3, 512, tag.EVERY, 17, keep, "/tmp/x/link")
        extra = mark.extra_args()
        assert isinstance(extra["modelnet"], bytes)  # JSON has none: nobody outside can send it
        assert tag.tag_of(type("P", (), {"extra_args": extra})()) == mark
    for other in (None, {}, {"modelnet": "MNT1" + "x" * 60}, {"modelnet": b"x" * 60}, {"modelnet": b"MNT1"}):
        assert tag.tag_of(type("P", (), {"extra_args": other})()) is None
