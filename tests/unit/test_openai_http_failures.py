"""What goes wrong between the generic HTTP backend and its server becomes an error of ours; and its settings."""

from __future__ import annotations

from typing import Any

import aiohttp
import pytest
from aiohttp import web
from upstream import KEY, presentable_error, read, server, writes

from backends import errors
from backends.openai_http import OpenAIHTTPBackend, OpenAIHTTPSettings
from backends.openai_http.failures import NETWORK, from_exception, from_response, presentable, retry_after

BAD = {
    "error": {"message": "temperature must be < 2, see http://10.0.0.7:8000/docs", "param": "temperature", "code": 400}
}
VLLM = {
    "error": {
        "message": "This model's maximum context length is 2048 tokens. However, you requested 3000 tokens "
        "(2900 in the messages, 100 in the completion). Please reduce the length of the messages or completion.",
        "type": "BadRequestError",
        "param": None,
        "code": 400,
    }
}
LLAMA_CPP = {
    "error": {
        "code": 400,
        "message": "request (3000 tokens) exceeds the available context size (2048 tokens), try increasing it",
        "type": "exceed_context_size_error",
    }
}
OPENAI = {"error": {"message": "Too long.", "type": "invalid_request_error", "code": "context_length_exceeded"}}


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("status", "body", "kind"),
    [
        (400, BAD, errors.RequestRejected),
        (400, VLLM, errors.ContextTooLong),
        (400, LLAMA_CPP, errors.ContextTooLong),
        (400, OPENAI, errors.ContextTooLong),
        (401, BAD, errors.BackendAuthFailed),
        (402, {}, errors.BackendAuthFailed),
        (403, {}, errors.BackendAuthFailed),
        (404, {"error": {"message": "The model `up` does not exist."}}, errors.BackendUnavailable),
        (408, {}, errors.BackendTimeout),
        (413, {"detail": "body too large"}, errors.RequestRejected),
        (422, BAD, errors.RequestRejected),
        (429, {}, errors.BackendOverloaded),
        (429, {"error": {"code": "insufficient_quota", "message": "pay"}}, errors.BackendAuthFailed),
        (500, {"error": "Traceback … /srv/app/secret.py"}, errors.BackendUnavailable),
        (502, {}, errors.BackendUnavailable),
        (503, {}, errors.BackendOverloaded),
        (504, {}, errors.BackendTimeout),
    ],
)
async def test_statuses(status: int, body: Any, kind: type[errors.BackendError]) -> None:
    async def handler(request: web.Request) -> web.Response:
        return web.json_response(body, status=status, headers={"Retry-After": "7"})

    async with server(handler) as backend:
        with pytest.raises(errors.BackendError) as caught:
            await read(backend)
        error = caught.value
        assert type(error) is kind
        assert error.__cause__ is not None
        assert error.lasting == (status == 404)
        assert "10.0.0.7" not in error.message
        assert "secret" not in error.message
        presentable_error(backend, error)
        if isinstance(error, errors.RequestRejected):
            assert error.status == status
        if body is BAD and isinstance(error, errors.RequestRejected):
            assert error.param == "temperature"
            assert "temperature must be < 2" in error.message
        if isinstance(error, errors.BackendOverloaded):
            assert error.retry_after == 7
        if body in (VLLM, LLAMA_CPP) and isinstance(error, errors.ContextTooLong):
            assert (error.tokens, error.limit) == (3000, 2048)


@pytest.mark.parametrize("status", range(300, 600))
def test_every_status_is_an_error_of_ours(status: int) -> None:
    assert isinstance(from_response("m", status, {}, b"<html>oh no</html>"), errors.BackendError)


def _subclasses(kind: type[Exception]) -> set[type[Exception]]:
    return {kind}.union(*(_subclasses(below) for below in kind.__subclasses__()))


@pytest.mark.parametrize(
    "kind", sorted(_subclasses(aiohttp.ClientError) - {aiohttp.ClientError}, key=lambda k: k.__name__)
)
def test_every_error_of_the_http_library_is_mapped(kind: type[Exception]) -> None:
    assert issubclass(kind, NETWORK)
    error = from_exception("m", kind.__new__(kind))
    wanted = errors.BackendTimeout if issubclass(kind, TimeoutError) else errors.BackendUnavailable
    assert type(error) is wanted


@pytest.mark.anyio
async def test_nobody_listens() -> None:
    async with server(writes()) as backend:
        settings = backend._settings
    for base_url in (settings.base_url, "http://no-such-host.invalid/v1", settings.base_url.replace("http:", "https:")):
        gone = OpenAIHTTPBackend("m", OpenAIHTTPSettings(base_url=base_url, connect_timeout=1))
        for call in (read(gone), gone.ready()):
            with pytest.raises((errors.BackendUnavailable, errors.BackendTimeout)) as caught:
                await call
            assert "invalid" not in caught.value.message
            assert "127.0.0.1" not in caught.value.message
            assert caught.value.__cause__ is not None
        await gone.aclose()


def test_words_of_servers_are_cleaned() -> None:
    dirty = "see https://u:p@h/x , http://10.1.2.3:80, 10.1.2.3:99, gpu-3:8000, [::1]:80, sk-abc123, Bearer xyz, /srv/models/q.bin"
    assert presentable(dirty) == "see … , … …, …, …, …, … …"
    for secret in ("u:p", "10.1", "gpu-3", "::1", "abc123", "xyz", "q.bin"):
        assert secret not in presentable(dirty)
    assert (
        presentable("max_tokens must be at least 1, got -5 (or 3/4)")
        == "max_tokens must be at least 1, got -5 (or 3/4)"
    )
    assert len(presentable("x " * 1000)) == 400


def test_retry_after() -> None:
    assert retry_after({}) is None
    assert retry_after({"Retry-After": "2.5"}) == 2.5
    assert retry_after({"retry-after-ms": "1500"}) == 1.5
    assert retry_after({"Retry-After": "Wed, 21 Oct 2015 07:28:00 GMT"}) == 0
    assert retry_after({"Retry-After": "soon"}) is None


# Settings


def test_secrets_do_not_show() -> None:
    settings = OpenAIHTTPSettings(base_url="http://h/v1", api_key=KEY, headers={"X-Key": "hush"})
    assert KEY not in repr(settings)
    assert "hush" not in repr(settings)


@pytest.mark.parametrize(
    "wrong",
    [
        {"base_url": "h/v1"},
        {"base_url": "ftp://h"},
        {"base_url": "http://u:p@h/v1"},
        {"base_url": "http://h/v1?key=1"},
        {"chunk_timeout": 0},
        {"sessions": "maybe"},
        {"max_logprobs": 0},
    ],
)
def test_settings_are_checked(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong)) + r"|timeout"):
        OpenAIHTTPSettings(**{"base_url": "http://h/v1", **wrong})
