"""How a run names studies, series, instances, institutions and objects, and what it then may not say.

`hashed` is for runs that are handed on: nothing below the run's folder says where an object lies, so the run's manifest
lies elsewhere, and `run.json` has hashes for its source, its manifest and its condition.
"""

from __future__ import annotations

import hashlib
import hmac
import json
from pathlib import Path
from typing import Any, NamedTuple

from ad_jobs.errors import UsageError
from ad_jobs.specs import IdentifierMode
from ad_jobs.values import read_key
from cluster import storage

# What a hash begins with.
HASHED = "hmac:"
# Where the run's own folder must not hold its manifest: RUN.manifest.
BESIDE = ".manifest"
# Of a request: what may hold names of the archive.
_OF_THE_ARCHIVE = ("source", "where", "manifest_out")


class Naming(NamedTuple):
    """How a file names what identifies: in two files of one naming, equal names are of one thing.

    `key` is what the key makes of nothing, which tells one key from another, and nothing of either.
    """

    mode: IdentifierMode
    key: str | None


class Identifiers(NamedTuple):
    """How the table names studies, series and instances; `hashed` also hides URIs, which may hold names."""

    mode: IdentifierMode = "plain"
    key: bytes = b""

    @property
    def naming(self) -> Naming:
        """What a file says of how it names."""
        return Naming(self.mode, self.uid(""))

    def uid(self, uid: str | None) -> str | None:
        """A UID, or the name of an institution, as a table shows it."""
        if uid is None or self.mode == "none":
            return None
        return self._hash(uid) if self.mode == "hashed" else uid

    def uri(self, uri: str) -> str:
        """A URI, or a condition over URIs, as the run shows it."""
        return self._hash(uri) if self.mode == "hashed" else uri

    def config(self, config: dict[str, Any]) -> dict[str, Any]:
        """A request as the run records it: who repeats it names again what is left out."""
        hidden = _OF_THE_ARCHIVE if self.mode == "hashed" else ()
        return {name: value for name, value in config.items() if name not in hidden}

    def calibration(self, file: bytes) -> bytes:
        """A calibration.json as the run keeps it: it says where its images lie."""
        if self.mode != "hashed":
            return file
        content = json.loads(file)
        return (json.dumps({**content, "source": self._hash(content["source"])}, indent=2) + "\n").encode()

    def _hash(self, text: str) -> str:
        return HASHED + hmac.new(self.key, text.encode(), hashlib.sha256).hexdigest()[:32]


def is_hashed(text: str | None) -> bool:
    """Whether a run shows this instead of something else."""
    return text is not None and text.startswith(HASHED)


def manifest_beside(out: str) -> str:
    """Where the manifest of a run lies that may not say where its objects lie.

    Raises:
        UsageError: the run is a whole bucket, beside which there is nothing.
    """
    if (uri := place_beside(out)) is None:
        raise UsageError(
            "The manifest of a run with hashed identifiers lies beside its folder.",
            f"--out {out}, a whole bucket",
            "Name a prefix in it, or say where the manifest is to lie with --manifest-out.",
        )
    return uri


def place_beside(out: str) -> str | None:
    """The same; None of a whole bucket, beside which there is nothing."""
    return None if storage.is_s3(out) and "/" not in out.removeprefix("s3://") else out + BESIDE


def read_identifiers(mode: IdentifierMode, key: Path | None) -> Identifiers:
    """Identifiers in this mode, with the key in the file `key`, without white space around it.

    Raises:
        UsageError: a mode that needs a key, and none; a file that cannot be read.
    """
    if mode == "hashed" and key is None:
        raise UsageError(
            "--identifiers hashed needs a key that is kept outside the table.",
            "no key",
            "Give --identifiers-key FILE; the same key gives the same pseudonyms in another run.",
        )
    if key is not None and mode != "hashed":
        raise UsageError(
            "--identifiers-key is the key of hashed identifiers.",
            f"--identifiers {mode}",
            "Add --identifiers hashed, or leave the key out.",
        )
    return Identifiers(mode) if key is None else Identifiers(mode, read_key("--identifiers-key", key))
