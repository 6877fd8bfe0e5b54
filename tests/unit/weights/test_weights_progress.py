"""What a person sees of a download: bars on a terminal, few lines elsewhere."""

from __future__ import annotations

import io

from gateway.weights import terminal_progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def download(out: io.StringIO) -> list[str]:
    progress = terminal_progress(out)
    progress.say("hello [world]")
    with progress.task("tiny", 100_000_000) as task:
        for _ in range(1000):
            task.advance(100_000)
            task.advance(-50_000)  # a start-over
            task.advance(50_000)
    return out.getvalue().splitlines()


def test_elsewhere_a_line_for_every_tenth() -> None:
    lines = download(io.StringIO())
    assert lines[:3] == ["hello [world]", "tiny: 100.0 MB", "tiny: 10 % (10.0 MB)"]
    assert len(lines) == 12 and lines[-1].startswith("tiny: done in")


def test_on_a_terminal_a_bar() -> None:
    text = "\n".join(download(Terminal()))
    assert "hello [world]" in text and "tiny" in text and "100.0/100.0 MB" in text
