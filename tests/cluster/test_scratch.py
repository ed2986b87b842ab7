"""Ray's folder is its owner's alone, and goes with it, also where the owner had no time to remove it."""

import signal
import stat
import subprocess
import sys
from pathlib import Path

from cluster.scratch import scratch_folder, sweep

OWNER = """
import sys, time
from pathlib import Path
from cluster.scratch import scratch_folder
with scratch_folder(Path(sys.argv[1])) as folder:
    (folder / "log").write_text("of Ray")
    print(folder, flush=True)
    time.sleep(600)
"""


def owner(parent: Path) -> tuple[subprocess.Popen[str], Path]:
    """A process that has a folder below `parent`, and which."""
    process = subprocess.Popen([sys.executable, "-c", OWNER, str(parent)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    return process, Path(process.stdout.readline().strip())


def test_nobody_else_may_enter_and_nothing_stays(tmp_path: Path) -> None:
    with scratch_folder(tmp_path) as folder:
        # As Ray does.
        folder.chmod(0o777)
        assert stat.S_IMODE(folder.parent.stat().st_mode) == 0o700
        assert folder.parent.parent == tmp_path
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_owner_left_is_swept_and_the_living_ones_folder_stays(tmp_path: Path) -> None:
    dead, left = owner(tmp_path)
    living, kept = owner(tmp_path)
    try:
        dead.send_signal(signal.SIGKILL)
        dead.wait()
        assert (left / "log").exists()
        with scratch_folder(tmp_path) as mine:
            assert not left.parent.exists()
            assert (kept / "log").exists()
            sweep(tmp_path)
            assert mine.exists()
    finally:
        living.kill()
        living.wait()


def test_folders_of_others_are_left_alone(tmp_path: Path) -> None:
    # One without an owner's lock, a link to somewhere else, and a file.
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "owner.lock").touch()
    parent = tmp_path / "tmp"
    parent.mkdir()
    (parent / "rs-ray-1").mkdir()
    (parent / "rs-link").symlink_to(elsewhere)
    (parent / "rs-file").touch()
    sweep(parent)
    assert sorted(path.name for path in parent.iterdir()) == ["rs-file", "rs-link", "rs-ray-1"]
    assert (elsewhere / "owner.lock").exists()
