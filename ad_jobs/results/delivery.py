"""Files that are made of a run for somebody: written whole, beside the run, where nothing else lies."""

from __future__ import annotations

from pathlib import Path

from ad_jobs.errors import UsageError
from ad_jobs.results.parts import hashed
from cluster import storage

# What a spreadsheet takes a text for a formula by: its first character (OWASP, CSV injection).
FORMULA = "=+-@\t\r"


def digest_of(uri: str) -> str | None:
    """SHA-256 of a file, hexadecimal; None where there is none."""
    try:
        with hashed(uri) as (digest, _, _):
            return digest
    except (FileNotFoundError, NotADirectoryError, storage.NotFound):
        return None


def check_beside(run_uri: str, out: str, option: str) -> None:
    """Refuse a place within the run's own folder, whose every file is accounted for.

    Raises:
        UsageError: it is one.
    """
    if f"{out.rstrip('/')}/".startswith(f"{run_uri.rstrip('/')}/"):
        raise UsageError(
            "What is made of a run stands beside it.", f"{option} {out}, in the run's own folder", "Name another place."
        )


def deliver_file(path: Path, out: str, option: str) -> None:
    """Copy a finished local file to `out`, where nothing else lies; the same bytes are left as they are.

    Raises:
        UsageError: another file is there, or it cannot be written; `option` named it.
    """
    is_folder = storage.is_folder(out) or Path(out).is_dir()
    known = None if is_folder else digest_of(out)
    if known is not None and known == digest_of(str(path)):
        return
    if known is not None or is_folder:
        raise UsageError("Nothing that is there is replaced.", f"{option} {out}", "Name another.")
    try:
        storage.upload_file(path, out)
    # The last: a file where a folder would be.
    except (storage.AccessDenied, storage.NotFound, storage.Exists, NotADirectoryError) as error:
        raise UsageError(f"{option} must be a file that this user may write.", str(error), "Name another.") from error
