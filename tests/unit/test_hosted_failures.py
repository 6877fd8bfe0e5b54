"""What litellm raises becomes an error of ours. That its names are those of the real library is tested in an environment that has it."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from backends.hosted.failures import LASTING, TABLE, from_litellm


@pytest.mark.parametrize(("name", "kind"), [(name, kind) for name, kind, _ in TABLE])
def test_what_the_configuration_has_to_mend_is_not_asked_for_again(name: str, kind: type[Exception]) -> None:
    raised = type(name, (Exception,), {"status_code": 404 if name == "NotFoundError" else 400})
    litellm = SimpleNamespace(exceptions=SimpleNamespace(**{name: raised}))
    error = from_litellm(litellm, "m", raised("It is so."))
    assert type(error) is kind
    assert error.lasting == (name in LASTING)
