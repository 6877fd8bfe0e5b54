"""Who may call, and for how much.

A key is `mnk_<id>_<secret>`. The id is public: it is what lists, logs and the ledger show, and by which a key is found without
looking at any other. The secret is 256 random bits, shown once; only its SHA-256 is kept.

    secrets  making a key, reading one apart, its digest
    key      what a key is and may
    patterns which names a key may use
    store    keys in a database, and what was spent on each
    keyring  all keys that are valid here: those of the configuration and those of the store
    keeper   the thread that keeps the keyring as new as the store, and the store as new as what was spent
"""

from gateway.keys.key import Budget, Key, Rights
from gateway.keys.keyring import Keyring

__all__ = ["Budget", "Key", "Keyring", "Rights"]
