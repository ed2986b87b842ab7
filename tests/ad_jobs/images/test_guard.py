"""The decoder in a child process: the same frames, a hard limit, and life after a death."""

from __future__ import annotations

import functools
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import dicomkit as kit
import numpy as np
import pytest

from ad_jobs.errors import ErrorCode, ImageError
from ad_jobs.images.decode import decode, decode_each, preview
from ad_jobs.images.domain import Domain, Taker
from ad_jobs.images.guard import GuardedDecoder
from ad_jobs.images.policy import Limits, PixelPolicy

POLICY = PixelPolicy(channels=1, height_px=64, width_px=64)
LIMITS = Limits()
# The project's root first: tests/ad_jobs must not be taken for the package of that name.
FOLDERS = [str(Path(__file__).parents[3]), str(Path(__file__).parent), str(Path(kit.__file__).parent)]
DATA = kit.dicom(kit.ramp() * 16, bits=12)


def slow_object() -> bytes:
    """Ten thousand frames of which each takes a while: seconds in all, whatever the machine."""
    frames = np.zeros((10_000, 60, 60), np.uint8)
    return kit.dicom(frames, VOILUTFunction="SIGMOID", WindowCenter="1", WindowWidth="3")


def gone(pid: int) -> bool:
    """Whether the process has ended (or is a zombie that nobody has waited for yet)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


def wait_until_gone(pid: int, seconds: float = 30.0) -> bool:
    deadline = time.monotonic() + seconds
    while not gone(pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    return gone(pid)


def busy_s(pid: int) -> float:
    """The processor's time that a process has used."""
    user, system = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[11:13]
    return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")


def test_frames_and_errors_are_those_of_decode_by_one_child() -> None:
    with GuardedDecoder() as guard:
        assert guard.pid is None
        for _ in range(3):
            ours, theirs = decode(DATA, POLICY, LIMITS), guard.decode(DATA, POLICY, LIMITS)
            assert theirs.header == ours.header
            assert theirs.frames[0].geometry == ours.frames[0].geometry
            assert np.array_equal(theirs.frames[0].pixels, ours.frames[0].pixels)
        pid = guard.pid
        for data, code in ((b"", ErrorCode.EMPTY), (b"?" * 400, ErrorCode.UNKNOWN_FORMAT)):
            with pytest.raises(ImageError) as caught:
                guard.decode(data, POLICY, LIMITS)
            assert caught.value.code == code
        assert guard.pid == pid
    assert pid is not None
    assert gone(pid)


def test_an_object_that_takes_too_long_is_interrupted_and_the_next_one_works() -> None:
    with GuardedDecoder() as guard:
        guard.decode(DATA, POLICY, LIMITS)
        with pytest.raises(ImageError) as caught:
            guard.decode(slow_object(), POLICY, LIMITS.model_copy(update={"timeout_s": 0.05}))
        assert caught.value.code == ErrorCode.DECODE_TIMEOUT
        assert "0.05" in caught.value.detail
        assert len(guard.decode(DATA, POLICY, LIMITS).frames) == 1


def test_a_child_that_dies_over_an_object_fails_that_object_only() -> None:
    with GuardedDecoder() as guard:
        guard.decode(DATA, POLICY, LIMITS)
        pid = guard.pid
        assert pid is not None

        before = busy_s(pid)

        def kill_once_busy() -> None:
            # Longer than it takes to receive the object: it is being decoded.
            while busy_s(pid) < before + 0.3:
                time.sleep(0.01)
            os.kill(pid, signal.SIGKILL)

        killer = threading.Thread(target=kill_once_busy)
        killer.start()
        with pytest.raises(ImageError) as caught:
            guard.decode(slow_object(), POLICY, LIMITS)
        killer.join()
        assert caught.value.code == ErrorCode.DECODER_CRASHED
        assert "signal 9" in caught.value.detail
        assert len(guard.decode(DATA, POLICY, LIMITS).frames) == 1
        assert guard.pid != pid


def test_an_object_that_takes_too_much_memory_is_told_with_the_figure_and_the_next_one_works() -> None:
    little = LIMITS.model_copy(update={"max_memory_bytes": 64 << 20})
    large = kit.dicom(np.zeros((4000, 4000), np.uint16))
    with GuardedDecoder() as guard:
        assert len(guard.decode(large, POLICY, LIMITS).frames) == 1
        pid = guard.pid
        with pytest.raises(ImageError) as caught:
            guard.decode(large, POLICY, little)
        assert caught.value.code == ErrorCode.TOO_MUCH_MEMORY
        assert str(64 << 20) in caught.value.detail
        assert len(guard.decode(DATA, POLICY, little).frames) == 1
        assert guard.pid == pid


@pytest.mark.parametrize(
    "words", ["terminate called after throwing 'std::bad_alloc'", "memory allocation of 9 bytes failed"]
)
def test_a_child_that_dies_for_want_of_memory_says_so(words: str) -> None:
    dying = functools.partial(exec, f"import os; os.write(2, {words.encode()!r}); os.abort()")
    with GuardedDecoder() as guard:
        with pytest.raises(ImageError) as caught:
            guard.work(dying, b"", LIMITS)
        assert caught.value.code == ErrorCode.TOO_MUCH_MEMORY
        assert len(guard.decode(DATA, POLICY, LIMITS).frames) == 1
        # What was printed over one object is no word about the next.
        guard.work(functools.partial(exec, f"import os; os.write(2, {words.encode()!r})"), b"", LIMITS)
        with pytest.raises(ImageError) as caught:
            guard.work(functools.partial(exec, "import os; os.abort()"), b"", LIMITS)
        assert caught.value.code == ErrorCode.DECODER_CRASHED


def test_tiny_frames_that_grow_at_the_input_are_too_many() -> None:
    many = kit.dicom(np.zeros((3000, 1, 1), np.uint8))
    wide = POLICY.model_copy(update={"height_px": 256, "width_px": 256})
    with GuardedDecoder() as guard:
        with pytest.raises(ImageError) as caught:
            guard.decode_each(many, [POLICY, wide], LIMITS)
        assert caught.value.code == ErrorCode.TOO_MANY_FRAMES
        assert len(guard.decode(many, POLICY, LIMITS).frames) == 3000
        assert len(guard.decode(many, wide, LIMITS, only=7).frames) == 1


# The first model takes all objects here, the second none.
TAKERS = [Taker(0, Domain()), Taker(0, Domain(kind=("picture",)))]
REFUSED = (None, "kind dicom, and the model takes picture")


def test_who_refuses_an_object_does_so_though_it_takes_too_long() -> None:
    endless = kit.dicom(np.zeros((50_000, 1, 1), np.uint8), VOILUTFunction="SIGMOID", WindowCenter="1", WindowWidth="3")
    small = POLICY.model_copy(update={"height_px": 32, "width_px": 32})
    short = LIMITS.model_copy(update={"timeout_s": 2.0, "max_frames": 100_000})
    with GuardedDecoder() as guard:
        (found,) = guard.decode_each(endless, [small], short, takers=TAKERS)
        assert (found.refused, found.frames) == (REFUSED, [])
        assert found.error is not None
        assert found.error.code == ErrorCode.DECODE_TIMEOUT
        with pytest.raises(ImageError):
            guard.decode_each(endless, [small], short, takers=TAKERS[:1])


class Lost(GuardedDecoder):
    """Gives no answer about pixels."""

    code = ErrorCode.DECODER_CRASHED

    def work(self, work: Any, data: bytes, limits: Limits) -> Any:
        if work.func is decode_each:
            raise ImageError(self.code, "as a child that is lost")
        return super().work(work, data, limits)


@pytest.mark.parametrize("code", [ErrorCode.DECODER_CRASHED, ErrorCode.TOO_MUCH_MEMORY])
def test_who_refuses_an_object_does_so_though_the_child_is_lost(code: ErrorCode) -> None:
    with Lost() as guard:
        guard.code = code
        found = guard.decode_each(DATA, [POLICY, POLICY], LIMITS, takers=TAKERS)
        assert [one.refused for one in found] == [REFUSED] * 2
        assert [one.error and one.error.code for one in found] == [code] * 2
        # Nobody refuses it, or nobody knows.
        for data, takers in ((DATA, TAKERS[:1]), (DATA[:200], TAKERS), (DATA, [])):
            with pytest.raises(ImageError) as caught:
                guard.decode_each(data, [POLICY], LIMITS, takers=takers)
            assert caught.value.code == code


def test_a_preview_is_made_by_the_child() -> None:
    with GuardedDecoder() as guard:
        assert np.array_equal(guard.preview(DATA, 0, POLICY, LIMITS), preview(DATA, 0, POLICY, LIMITS))
        with pytest.raises(ImageError) as caught:
            guard.preview(slow_object(), 9999, POLICY, LIMITS.model_copy(update={"timeout_s": 0.01}))
        assert caught.value.code == ErrorCode.DECODE_TIMEOUT


def test_a_child_that_died_between_objects_fails_none() -> None:
    with GuardedDecoder() as guard:
        guard.decode(DATA, POLICY, LIMITS)
        assert guard.pid is not None
        os.kill(guard.pid, signal.SIGKILL)
        assert wait_until_gone(guard.pid)
        assert len(guard.decode(DATA, POLICY, LIMITS).frames) == 1


def test_neither_child_nor_parent_imports_torch_or_ray() -> None:
    code = (
        "import sys, ad_jobs.images.guard, ad_jobs.images.decode\n"
        "assert not {'torch', 'ray', 'torchvision'} & set(sys.modules), sorted(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    with GuardedDecoder() as guard:
        guard.decode(DATA, POLICY, LIMITS)
        assert "libtorch" not in Path(f"/proc/{guard.pid}/maps").read_text()


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGTERM])
def test_the_child_ends_with_its_parent(end: signal.Signals) -> None:
    code = (
        "import sys, time\n"
        "sys.path[:0] = sys.argv[1:]\n"
        "from test_guard import *\n"
        "guard = GuardedDecoder(); guard.decode(DATA, POLICY, LIMITS)\n"
        "print(guard.pid, flush=True); time.sleep(60)"
    )
    command = [sys.executable, "-c", code, *FOLDERS]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        assert not gone(child)
        parent.send_signal(end)
    assert wait_until_gone(child)


def test_the_child_ends_when_the_interpreter_exits_without_close() -> None:
    code = (
        "import sys\n"
        "sys.path[:0] = sys.argv[1:]\n"
        "from test_guard import *\n"
        "guard = GuardedDecoder(); guard.decode(DATA, POLICY, LIMITS); print(guard.pid)"
    )
    done = subprocess.run([sys.executable, "-c", code, *FOLDERS], capture_output=True, text=True, check=True)
    assert done.stderr == ""
    assert gone(int(done.stdout))


def test_threads_take_turns() -> None:
    with GuardedDecoder() as guard:
        pages: list[int] = []
        frames = {n: kit.dicom(np.stack([kit.ramp()] * n)) for n in range(2, 8)}

        def work(n: int) -> None:
            pages.append(n - len(guard.decode(frames[n], POLICY, LIMITS).frames))

        threads = [threading.Thread(target=work, args=(n,)) for n in frames]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert pages == [0] * len(frames)
