"""Bodies that are not read: too large ones, by their announced length or as soon as that much has arrived, and compressed ones."""

from __future__ import annotations

from gateway.web.asgi import App, Message, Receive, Scope, Send, header, is_http
from gateway.wire.errors import APIError


class BodyLimit:
    """limit: bytes."""

    def __init__(self, app: App, limit: int) -> None:
        self.app = app
        self._limit = limit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if not is_http(scope):
            await self.app(scope, receive, send)
            return
        coding = header(scope, b"content-encoding")
        if coding is not None and coding.strip().lower() not in ("", "identity"):
            raise APIError(
                415, f"Bodies are taken as they are, not in the encoding {coding[:64]!r}.", code="unsupported_encoding"
            )
        announced = header(scope, b"content-length")
        if announced is not None and announced.isdecimal() and (len(announced) > 18 or int(announced) > self._limit):
            raise self._too_large()
        got = 0

        async def counting_receive() -> Message:
            nonlocal got
            message = await receive()
            if message["type"] == "http.request":
                got += len(message.get("body", b""))
                if got > self._limit:
                    raise self._too_large()
            return message

        await self.app(scope, counting_receive, send)

    def _too_large(self) -> APIError:
        return APIError(413, f"The body is larger than {self._limit} bytes.", code="request_too_large")
