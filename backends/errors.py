"""What can go wrong in a backend. One tree; every backend maps the errors of its library or wire into it.

BackendError
├── BackendUnavailable      can't be reached, died, broke off, or answered something that is not its protocol
│   └── CircuitOpen         was not asked: it kept failing, and is left alone for a moment
├── BackendTimeout          did not answer in time
├── BackendOverloaded       its queue is full; try again later
├── ContextTooLong          the prompt (with the room asked for) does not fit the model's context
├── RequestRejected         it refused the request itself: the client's to mend
├── BackendAuthFailed       it refused *our* credentials: the operator's to mend
├── CapabilityMissing       it can't do what was asked (open token sessions, score drafts, …)
└── SessionClosed           a call on a session that was closed

Messages are for the client of the gateway: no hosts, no keys, no file paths in them. Details go to the log through
`__cause__`.
"""

from __future__ import annotations


class BackendError(Exception):
    """Base of all. `model` is the catalogue name of the model concerned.

    repeatable: it had not begun with what it was asked, so that asking again can't do anything twice. lasting: asking again is answered
    the same until the operator mends something.
    """

    repeatable = False
    lasting = False

    def __init__(self, model: str, message: str) -> None:
        super().__init__(message)
        self.model = model
        self.message = message


class BackendUnavailable(BackendError):
    """The model's server or process can't be reached, died, or broke off."""


class CircuitOpen(BackendUnavailable):
    """It kept failing, so it was not asked. `retry_after`: seconds until it is."""

    def __init__(self, model: str, message: str, retry_after: float | None = None) -> None:
        super().__init__(model, message)
        self.retry_after = retry_after


class BackendTimeout(BackendError):
    """No answer within the deadline."""


class BackendOverloaded(BackendError):
    """The bounded queue is full. `retry_after` in seconds, if anything is known."""

    def __init__(self, model: str, message: str, retry_after: float | None = None) -> None:
        super().__init__(model, message)
        self.retry_after = retry_after


class ContextTooLong(BackendError):
    """`tokens` asked for (prompt and, if given, room for the answer) against `limit`, both in the model's own tokens."""

    def __init__(self, model: str, message: str, tokens: int | None = None, limit: int | None = None) -> None:
        super().__init__(model, message)
        self.tokens = tokens
        self.limit = limit


class RequestRejected(BackendError):
    """Refused as invalid. `status` is the HTTP status it came with (4xx); `param` the field it names, if any."""

    def __init__(self, model: str, message: str, status: int = 400, param: str | None = None) -> None:
        super().__init__(model, message)
        self.status = status
        self.param = param


class BackendAuthFailed(BackendError):
    """The gateway's own credentials for this backend were refused."""


class CapabilityMissing(BackendError):
    """The backend can't do this; the message says what and why."""


class SessionClosed(BackendError):
    """The session was closed before or during the call."""


def read_nothing(error: BackendError) -> bool:
    """Whether its model is known not to have read what it was asked: it was not asked, or it refused before."""
    refusals = (CircuitOpen, BackendOverloaded, ContextTooLong, RequestRejected, BackendAuthFailed, CapabilityMissing)
    return error.repeatable or isinstance(error, refusals)
