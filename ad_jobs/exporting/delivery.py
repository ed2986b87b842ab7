"""A folder of an export's files, which says whose it is.

Nothing is replaced that this very export did not write.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ad_jobs.errors import UsageError
from cluster import storage

# Which export a folder is of; written first, and at the end with what became of the rows.
RECORD_FILE = "export.json"
INDEX_FILE = "index.csv"


class Folder:
    """A folder of an export's files; entering it anew continues what the same command began.

    Raises:
        UsageError: it holds something else.
    """

    def __init__(self, out: str, asked: dict[str, Any]) -> None:
        self.out = out
        self.asked = {"version": 1, **asked}
        uri = storage.join(out, RECORD_FILE)
        try:
            known = json.loads(storage.read_bytes(uri))
        except storage.NotFound:
            if storage.is_folder(out) or storage.exists(out):
                raise self._refused("holds something else") from None
        except ValueError:
            raise self._refused("has a record of an export that cannot be read") from None
        else:
            if not isinstance(known, dict) or any(known.get(name) != value for name, value in self.asked.items()):
                raise self._refused("is another export's")
        self._record({"finished": False})

    def write(self, name: str, data: bytes) -> None:
        """One file, whole."""
        storage.patiently(lambda: storage.write_bytes(storage.join(self.out, name), data))

    def finish(self, index: Path, told: dict[str, Any]) -> None:
        """The index of all rows, and last the record with their counts."""
        storage.upload_file(index, storage.join(self.out, INDEX_FILE))
        self._record({"finished": True, **told})

    def _record(self, more: dict[str, Any]) -> None:
        self.write(RECORD_FILE, (json.dumps({**self.asked, **more}, indent=2) + "\n").encode())

    def _refused(self, what: str) -> UsageError:
        return UsageError(
            "--out is a new folder, or one that the same command has written.",
            f"{self.out}, which {what}",
            "Name another.",
        )
