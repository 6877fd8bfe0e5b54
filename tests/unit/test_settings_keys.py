"""Keys and other secrets of a configuration: what they may be, and that they show nowhere."""

from __future__ import annotations

from pathlib import Path

import pytest
from settings_files import MODEL, problems, write

from gateway.settings import Settings, host_problem, load


def test_secrets_show_nowhere(tmp_path: Path) -> None:
    """Neither in `repr` nor in the message about a mistake beside them."""
    text = "models:\n  a:\n    backend: openai\n    base_url: http://h/v1\n    api_key: ${KEY}\nkeys: ['${KEY}']\n"
    loaded = load(write(tmp_path, text), {"KEY": "hunter2-hunter2"})
    assert "hunter2" not in repr(loaded.settings)
    assert loaded.settings.keys[0].get_secret_value() == "hunter2-hunter2"
    for wrong in ("keys: '${KEY}'\n", "keys: [{'${KEY}': '${KEY}'}]\n", "limits: {messages: '${KEY}'}\n"):
        found = problems(tmp_path, MODEL + wrong, KEY="hunter2-hunter2")
        assert "hunter2" not in "".join(found)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("keys: ['${KEY}']\n", "keys[0]"),
        ("keys: [{name: a, key: '${KEY}'}]\n", "keys[0].key"),
        ("admin: {key: '${KEY}'}\nkeys: [another-key-of-a-user]\n", "admin.key"),
        ("tracing: {endpoint: http://h/v1/traces, headers: {x-key: '${KEY}'}}\n", "tracing.headers.x-key"),
        ("  b: {backend: openai, base_url: http://h/v1, api_key: '${KEY}'}\n", "models.b.api_key"),
        ("  b: {backend: vllm, urls: ['http://h/v1'], api_key: '${KEY}'}\n", "models.b.api_key"),
        ("  b: {backend: openai, base_url: http://h/v1, headers: {X-Key: '${KEY}'}}\n", "models.b.headers.X-Key"),
    ],
)
def test_keys_and_headers_are_one_line(tmp_path: Path, text: str, expected: str) -> None:
    """Nobody could send such a key, and no request with it would leave. The message does not repeat it."""
    for key, said in (
        ("hunter2-hunter2-hunter2\n", "holds a line break or another control character"),
        ("hunter2\x00hunter2-hunter2", "holds a line break or another control character"),
        (" hunter2-hunter2-hunter2", "begins or ends with a space"),
    ):
        (found,) = problems(tmp_path, MODEL + text, KEY=key)
        assert expected in found
        assert found.endswith(said)
        assert "hunter2" not in found
    load(write(tmp_path, MODEL + text), {"KEY": "hunter2-hunter2-hunter2"})


@pytest.mark.parametrize("name", ["Content-Length", "transfer-encoding", "Connection"])
def test_a_models_headers_do_not_frame_its_requests(tmp_path: Path, name: str) -> None:
    text = MODEL + f"  b: {{backend: openai, base_url: http://h/v1, headers: {{{name}: '5'}}}}\n"
    (found,) = problems(tmp_path, text)
    assert found.endswith("is a header that the gateway sets itself")


@pytest.mark.parametrize("name", ["x key", "x:key", "x\\nkey", ""])
def test_a_headers_name_is_one(tmp_path: Path, name: str) -> None:
    assert problems(tmp_path, MODEL + f'  b: {{backend: openai, base_url: http://h/v1, headers: {{"{name}": "5"}}}}\n')


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("admin: {key: '${KEY}'}\nkeys:\n- '${KEY}'\n", ["5: keys[0]: is the same key as admin.key"]),
        (
            "keys:\n- key: '${KEY}'\n  name: a\n- key: '${KEY}'\n  name: b\n",
            ["6: keys[1].key: is the same key as keys[0].key"],
        ),
        (
            "keys:\n- '${KEY}'\n- {name: b, key: '${KEY}'}\n- '${KEY}'\n",
            ["5: keys[1].key: is the same key as keys[0]", "6: keys[2]: is the same key as keys[0]"],
        ),
    ],
)
def test_a_key_is_one_key(tmp_path: Path, text: str, expected: list[str]) -> None:
    """The message does not repeat it."""
    assert problems(tmp_path, MODEL + text, KEY="hunter2-hunter2-hunter2") == expected
    other = "admin: {key: another-key-of-the-admin}\nkeys: ['${KEY}', {name: b, key: '${KEY}x'}]\n"
    load(write(tmp_path, MODEL + other), {"KEY": "hunter2-hunter2-hunter2"})


@pytest.mark.parametrize(
    ("host", "keys", "allowed"),
    [
        ("127.0.0.1", [], True),
        ("localhost", [], True),
        ("::1", [], True),
        ("127.9.9.9", [], True),
        ("0.0.0.0", [], False),
        ("::", [], False),
        ("10.0.0.1", [], False),
        ("example.org", [], False),
        ("localhost.example.org", [], False),
        ("0.0.0.0", ["12345678"], True),
    ],
)
def test_without_keys_only_this_machine_is_served(host: str, keys: list[str], allowed: bool) -> None:
    settings = Settings.model_validate({"models": {"a": {"backend": "fake"}}, "keys": keys})
    problem = host_problem(settings, host)
    assert (problem is None) == allowed
    assert allowed or "keys" in str(problem)
