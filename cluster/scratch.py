"""A folder for an embedded Ray: its owner's alone, and removed by the next one where its owner was killed."""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

# Sockets lie below the folder, and a unix socket's path may have 107 bytes: a user's TMPDIR may be too long.
_PARENT = Path("/tmp")
_PREFIX = "rs-"
# Held by the owner for as long as it lives: the kernel lets go of it whatever ends the process.
_LOCK = "owner.lock"


@contextmanager
def scratch_folder(parent: Path = _PARENT) -> Iterator[Path]:
    """A new folder for the length of the block, below one that nobody else may enter.

    Ray opens the folder it is given to everyone (mode 0777), so that it is given one inside.
    Those that this user's killed processes left behind are removed first.
    """
    sweep(parent)
    with ExitStack() as stack:
        while True:
            outer = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=parent))
            stack.callback(shutil.rmtree, outer, ignore_errors=True)
            # Another's sweep may come between the two: then the folder is gone, and there is no room for the inner one.
            with suppress(FileNotFoundError):
                fcntl.flock(stack.enter_context((outer / _LOCK).open("w")), fcntl.LOCK_EX)
                inner = outer / "r"
                inner.mkdir()
                break
        yield inner


def sweep(parent: Path = _PARENT) -> None:
    """Remove what `scratch_folder` left below `parent` where its owner, a process of this user, is gone."""
    for folder in parent.glob(f"{_PREFIX}*"):
        # Another's folder, or one that another process is removing at this moment.
        with suppress(OSError):
            if folder.is_symlink() or folder.stat().st_uid != os.getuid():
                continue
            with (folder / _LOCK).open() as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder, ignore_errors=True)
