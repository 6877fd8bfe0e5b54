"""Scores of completions over HTTP."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import anyio
import pytest
from edge import CHAT, fake, question
from operated import operated

pytestmark = pytest.mark.anyio


async def test_feedback_goes_to_the_completion_of_the_same_key(tmp_path: Path) -> None:
    async with operated(tmp_path, fake("a")) as house:
        _, mine = house.make_key()
        _, other = house.make_key()

        async def score(header: dict[str, str], **body: Any) -> Any:
            return await house.call("POST", "/v1/feedback", body, header)

        id = (await house.call("POST", CHAT, question(), mine)).json()["id"]
        done = await score(mine, id=id, score=0.75)
        assert (done.status, done.json()) == (200, {"object": "feedback", "id": id, "score": 0.75})
        assert (await score(mine, id=id, score=True)).json()["score"] == 1.0
        assert (await score(other, id=id, score=0)).error["code"] == "completion_not_found"
        assert (await score(mine, id="chatcmpl-none", score=0)).status == 404
        for wrong in (
            {"score": 1},
            {"id": id},
            {"id": id, "score": 2},
            {"id": id, "score": "1"},
            {"id": 5, "score": 1},
        ):
            assert (await score(mine, **wrong)).status == 400
        assert (await score(mine, id="x" * 4000, score=1)).status == 400
        await house.rows(1)  # feedback is no row of its own
    async with operated(tmp_path, fake("a")) as house:  # and after a restart it is found in the database
        assert (await house.call("POST", "/v1/feedback", {"id": id, "score": 0}, mine)).status == 200
        assert (await house.call("POST", "/v1/feedback", {"id": id, "score": 0}, other)).status == 404


async def test_feedback_for_nothing_holds_up_no_other(tmp_path: Path) -> None:
    """What another process may be just writing is waited for side by side."""
    async with operated(tmp_path, fake("a"), ledger={"flush_seconds": 0.5}) as house:
        _, mine = house.make_key()
        statuses: list[int] = []

        async def score(number: int) -> None:
            body = {"id": f"chatcmpl-{number}", "score": 1}
            statuses.append((await house.call("POST", "/v1/feedback", body, mine)).status)

        with anyio.fail_after(5):
            async with anyio.create_task_group() as tasks:
                for number in range(40):
                    tasks.start_soon(score, number)
        assert statuses == [404] * 40


async def test_scores_leave_room_for_requests(tmp_path: Path) -> None:
    """While the database is away they wait in the same memory."""
    (tmp_path / "file").write_text("in the way")
    away = {"database": str(tmp_path / "file" / "ledger.db"), "queue": 100}
    async with operated(tmp_path, fake("a"), ledger=away) as house:
        _, mine = house.make_key()
        id = (await house.call("POST", CHAT, question(), mine)).json()["id"]
        body = {"id": id, "score": 1}
        statuses = [(await house.call("POST", "/v1/feedback", body, mine)).status for _ in range(60)]
        assert statuses == [200] * 49 + [503] * 11
        for _ in range(50):
            assert (await house.call("POST", CHAT, question(), mine)).status == 200
        ledger = house.operations.ledger
        assert ledger is not None
        assert (ledger.waiting, ledger.dropped) == (100, 0)
