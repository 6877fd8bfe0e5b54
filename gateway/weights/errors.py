"""What can go wrong with weights. One tree; every message is for the person at the terminal.

WeightsError
├── UnknownWeights      no such name in the catalogue
├── DiskFull            no room, before or while writing
├── NoSource            every source failed; the message lists what each of them said
└── DownloadFailed      one source failed (seen from outside only as part of NoSource)
    ├── Unreachable         no connection, or it broke off again and again
    └── ChecksumMismatch    the bytes are not the ones of the catalogue; names both hashes
"""

from __future__ import annotations


class WeightsError(Exception):
    """Base of all."""


class UnknownWeights(WeightsError):
    """No such name in the catalogue."""


class DiskFull(WeightsError):
    """No room for the file. No other source can help."""


class NoSource(WeightsError):
    """All sources failed. `reasons`: (source, error) in the order in which they were tried."""

    def __init__(self, message: str, reasons: tuple[tuple[str, WeightsError], ...]) -> None:
        super().__init__(message)
        self.reasons = reasons


class DownloadFailed(WeightsError):
    """A source can't give the file; another one may."""


class Unreachable(DownloadFailed):
    """No connection to the source, or none that lasts."""


class ChecksumMismatch(DownloadFailed):
    """Other bytes than expected. `expected` and `actual` are sha256 hex digests."""

    def __init__(self, what: str, expected: str, actual: str) -> None:
        super().__init__(f"{what} has sha256 {actual}, expected {expected}")
        self.expected = expected
        self.actual = actual
