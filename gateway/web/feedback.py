"""POST /v1/feedback: a score for a completion, `{"id": "chatcmpl-…", "score": 0.0 to 1.0}`. true and false are 1 and 0.

Only the key that got the completion may score it. A later score replaces an earlier one.
"""

from __future__ import annotations

import time
from functools import partial

import anyio
import anyio.to_thread
import orjson
import structlog

from gateway.ledger.row import Feedback
from gateway.operations import Operations
from gateway.storage import StorageError
from gateway.web.account import caller
from gateway.web.asgi import Receive, Scope, Send, read_body, send_error, send_json
from gateway.wire.body import json_object
from gateway.wire.errors import APIError, bad_request, overloaded
from gateway.wire.fields import string

FEEDBACK = "/v1/feedback"
LONGEST_ID = 128
AT_ONCE = 4
"""Look-ups in the database side by side."""
LONGEST_WAIT = 10.0
"""Seconds for one, the wait for a place included."""

log = structlog.get_logger("modelnet.feedback")


class FeedbackRoute:
    """Keeps scores in the ledger."""

    def __init__(self, operations: Operations) -> None:
        self._operations = operations
        self._places = anyio.Semaphore(AT_ONCE)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await self._take(scope, receive, send)
        except APIError as error:
            await send_error(scope, send, error)

    async def _take(self, scope: Scope, receive: Receive, send: Send) -> None:
        ledger = self._operations.ledger
        if ledger is None:
            raise APIError(404, "There is no ledger here that could keep feedback.", code="not_supported")
        if ledger.crowded:
            raise overloaded("Feedback can't be kept at the moment.")
        fields = json_object(await read_body(receive))
        completion, score = string(fields, "id"), fields.get("score")
        if not completion or len(completion) > LONGEST_ID:
            raise bad_request("id must be the id of a completion.", "id")
        if not isinstance(score, bool | int | float) or not 0 <= score <= 1:
            raise bad_request("score must be a number from 0 to 1, or true or false.", "score")
        key = caller(scope)
        who = key.id if key is not None else None
        owner = ledger.owner(completion)
        if owner is None:
            owner = await self._look_up(completion)
        if owner is None:  # another process may be just writing it; nobody else waits for that
            await anyio.sleep(ledger.latest)
            owner = await self._look_up(completion)
        if owner is None or owner[0] != who:
            raise APIError(404, "There is no completion of that id.", code="completion_not_found", param="id")
        ledger.put(Feedback(completion, who, time.time(), float(score)))
        body = {"object": "feedback", "id": completion, "score": float(score)}
        await send_json(send, 200, orjson.dumps(body))

    async def _look_up(self, completion: str) -> tuple[str | None] | None:
        ledger = self._operations.ledger
        assert ledger is not None
        try:
            with anyio.fail_after(LONGEST_WAIT):
                async with self._places:
                    return await anyio.to_thread.run_sync(
                        partial(ledger.find_owner, completion), abandon_on_cancel=True
                    )
        except (StorageError, TimeoutError) as error:
            log.error("ledger_unreadable", reason=str(error) or "it is too slow")
            raise overloaded("Feedback can't be kept at the moment.") from error
