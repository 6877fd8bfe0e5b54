"""Opens an account for every request to a counted path, and closes it when all is over, however it ended."""

from __future__ import annotations

from collections.abc import Collection

import anyio

from gateway.observability.record import record_of
from gateway.operations import Operations
from gateway.web.account import Account, attach_account
from gateway.web.asgi import App, Message, Receive, Scope, Send, add_headers, encoded, is_http


class Accounts:
    """paths: those that are counted; only POSTs are."""

    def __init__(self, app: App, operations: Operations, paths: Collection[str]) -> None:
        self.app = app
        self._operations = operations
        self._paths = frozenset(paths)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if not is_http(scope) or scope["path"] not in self._paths or scope["method"] != "POST":
            await self.app(scope, receive, send)
            return
        account = Account(self._operations, record_of(scope))
        attach_account(scope, account)
        streams = False

        async def send_with_limits(message: Message) -> None:
            nonlocal streams
            if message["type"] == "http.response.start":
                if headers := account.headers():
                    add_headers(message, encoded(headers))
            elif message.get("more_body", False):
                streams = True
            else:
                if streams:
                    # The server waits here for a client that does not read, which keeps what it holds until it does.
                    await send({"type": "http.response.body", "body": b"", "more_body": True})
                await account.free()
            await send(message)

        broke = True
        try:
            await self.app(scope, receive, send_with_limits)
            broke = False
        finally:
            if account.lease is None or self._operations.limiter.shared is None:
                await account.close(scope["path"], broke)  # never waits, so it can't be cancelled
            else:
                with anyio.CancelScope(shield=True):  # bounded: what a key holds must be given back
                    await account.close(scope["path"], broke)
