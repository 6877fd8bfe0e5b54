"""Small databases of the gateway's own: SQLite files by default, PostgreSQL by URL, with one dialect of SQL for both.

`database` opens one and runs statements, synchronously: whoever uses it does so in a thread of its own, never on the event loop.
`places` says where files are kept where a configuration does not.
"""

from gateway.storage.database import Database, StorageError, Unfit, open_database
from gateway.storage.places import is_there, state_file, target

__all__ = ["Database", "StorageError", "Unfit", "is_there", "open_database", "state_file", "target"]
