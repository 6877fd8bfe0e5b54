"""One thread between the keyring and the store: keys come in, what was spent goes out.

A key that was made, changed or revoked by another process holds here after at most `seconds`. What was spent is written as often; a
killed process loses what was spent since. While the database can't be reached the last known keys stay valid as they were (and
still expire), and what is spent is kept until it can be told.
"""

from __future__ import annotations

import threading

import structlog

from gateway.keys.keyring import Keyring
from gateway.keys.store import KeyStore
from gateway.storage import StorageError, is_there

CLOSE_SECONDS = 6.0

log = structlog.get_logger("modelnet.keys")


class Keeper:
    """Keeps one keyring. `start` reads the store once before it returns."""

    def __init__(self, target: str, keyring: Keyring, seconds: float) -> None:
        self._target = target
        self._keyring = keyring
        self._seconds = seconds
        self._store: KeyStore | None = None
        self._seen: int | None = None
        self._wake = threading.Event()
        self._ending = False
        self._round = threading.Lock()
        self._thread = threading.Thread(target=self._work, name="keys", daemon=True)
        self.failing = False

    def start(self) -> None:
        """Read the keys, then keep them. Raises StorageError where they can't be read even once."""
        self._exchange()
        self._thread.start()

    def refresh(self) -> None:
        """Have the store's keys now. Blocks; raises StorageError."""
        self._exchange()

    def close(self) -> None:
        """Write what is not yet written, if that is possible soon."""
        self._ending = True
        self._wake.set()
        if self._thread.is_alive():
            self._thread.join(CLOSE_SECONDS)

    def _work(self) -> None:
        while not self._ending:
            self._wake.wait(self._seconds)
            try:
                self._exchange()
            except StorageError as error:
                if not self.failing:
                    log.error("keys_unreachable", reason=str(error))
                self.failing = True
            except Exception:  # whatever it was: without this thread no key would be made, revoked or charged any more
                log.exception("keys_failed")
                self.failing = True
            else:
                if self.failing:
                    log.info("keys_back")
                self.failing = False
        if self._store is not None:
            self._store.close()

    def _exchange(self) -> None:
        with self._round:
            if self._store is None and self._keyring.spending.idle and not is_there(self._target):
                return  # no key was ever made, and nothing is to be kept: no file comes into being
            try:
                if self._store is None:
                    self._store, self._seen = KeyStore(self._target), None
                changes = self._store.changes()
                if changes is None or changes != self._seen:
                    self._keyring.set_stored(self._store.all())
                    self._seen = changes
                self._keyring.spending.exchange(self._store.spend, self._store.spending)
            except BaseException:
                if self._store is not None:
                    self._store.close()
                self._store = None
                raise
