"""What shows that a run's record was changed: a digest over it, and with a key who wrote it (HMAC, RFC 2104).

The digest shows accidents, and who changes the record without computing it again.
Only the signature shows a change by someone who may write to the run and knows this file: they lack the key.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
from enum import StrEnum
from pathlib import Path
from typing import Any

from ad_jobs.values import read_key

# Holds the key itself, or the path of a file with it.
VARIABLE = "RETROSCAN_SIGNING_KEY"
DIGEST, SIGNATURE = "digest", "signature"


class Signature(StrEnum):
    """What is known of who wrote a record."""

    UNSIGNED = "unsigned"
    # By the key that was given.
    SIGNED = "signed"
    WRONG = "wrong"
    # It has a signature, and no key was given to check it.
    UNCHECKED = "unchecked"


def signing_key(file: Path | None) -> bytes | None:
    """The key in `file`, or else the one that RETROSCAN_SIGNING_KEY holds or names; None without either.

    Raises:
        UsageError: a file that cannot be read, or is empty.
    """
    if file is not None:
        return read_key("--key", file)
    value = os.environ.get(VARIABLE, "").strip()
    if not value:
        return None
    if os.sep in value or Path(value).is_file():
        return read_key(VARIABLE, Path(value))
    return value.encode()


def sealed(content: dict[str, Any], key: bytes | None) -> dict[str, Any]:
    """A record's content with its digest, and with a key its signature."""
    body = _canonical(content)
    return {**content, DIGEST: hashlib.sha256(body).hexdigest(), SIGNATURE: _signature(body, key) if key else None}


def digest_holds(content: dict[str, Any]) -> bool:
    """Whether the digest in a record is that of the rest of it."""
    return content.get(DIGEST) == hashlib.sha256(_canonical(content)).hexdigest()


def signature_of(content: dict[str, Any], key: bytes | None) -> Signature:
    """Who wrote a record, as far as the key tells."""
    found = content.get(SIGNATURE)
    if found is None:
        return Signature.UNSIGNED
    if key is None:
        return Signature.UNCHECKED
    same = isinstance(found, str) and hmac.compare_digest(found.encode(), _signature(_canonical(content), key).encode())
    return Signature.SIGNED if same else Signature.WRONG


def _signature(body: bytes, key: bytes) -> str:
    return hmac.new(key, body, hashlib.sha256).hexdigest()


def _canonical(content: dict[str, Any]) -> bytes:
    """All of a record but digest and signature, in one spelling."""
    rest = {name: value for name, value in content.items() if name not in (DIGEST, SIGNATURE)}
    return json.dumps(rest, sort_keys=True, separators=(",", ":")).encode()
