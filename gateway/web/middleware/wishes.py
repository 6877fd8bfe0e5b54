"""What a client's headers ask for its request: how long it may take, and whether others go before.

x-modelnet-timeout     seconds; never more than `limits.request_seconds`
x-modelnet-priority    low, normal or high; never higher than the key's (`shedding.keys`), which is normal where nothing is said
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import get_args

from gateway.observability.record import record_of
from gateway.web.account import caller
from gateway.web.admission import Priority
from gateway.web.asgi import App, Receive, Scope, Send, is_http
from gateway.wire.errors import bad_request

TIMEOUT = b"x-modelnet-timeout"
PRIORITY = b"x-modelnet-priority"
_ORDER: tuple[Priority, ...] = get_args(Priority)


class Wishes:
    """Inside of Auth: whose key it is must be known. keys: id of a key → its priority."""

    def __init__(self, app: App, keys: Mapping[str, Priority]) -> None:
        self.app = app
        self._keys = keys

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if is_http(scope) and scope["method"] == "POST":
            record = record_of(scope)
            if self._keys and (key := caller(scope)) is not None:
                record.priority = self._keys.get(key.id, "normal")
            for name, value in scope["headers"]:
                if name == TIMEOUT:
                    record.timeout = _seconds(value)
                elif name == PRIORITY:
                    record.priority = min(record.priority, _priority(value), key=_ORDER.index)
        await self.app(scope, receive, send)


def _seconds(value: bytes) -> float:
    try:
        seconds = float(value)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < 1e9:  # no NaN either
        raise bad_request("x-modelnet-timeout must be a positive number of seconds.", "x-modelnet-timeout")
    return seconds


def _priority(value: bytes) -> Priority:
    for priority in _ORDER:
        if value.decode("latin-1").strip().lower() == priority:
            return priority
    raise bad_request(f"x-modelnet-priority must be one of {', '.join(_ORDER)}.", "x-modelnet-priority")
