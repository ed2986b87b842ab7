"""The command line: bad usage ends with exit 2 before any work, in one message with rule, value and remedy."""

from __future__ import annotations

import errno
import json
import logging
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import runkit
from PIL import Image
from typer.main import get_command
from typer.testing import CliRunner, Result

from ad_jobs.cli.app import _OneLine, app
from ad_jobs.cli.options import pairs
from ad_jobs.errors import UsageError
from ad_jobs.images.policy import PixelPolicy
from ad_jobs.scoring.calibration import Calibrated
from ad_jobs.scoring.model_store import write_calibration
from ad_jobs.values import parse_size, parse_window
from cluster.errors import AccessDenied, Full, KeysRefused, NotFound, Unreachable
from models import artifact, registry
from models.detector import InputSpec


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (Full("/runs/a.csv", "No space left on device"), "/runs/a.csv: No space left on device. Free space there"),
        (OSError(errno.EDQUOT, "Disk quota exceeded", "/tmp/x"), "No room is left:.*quota exceeded.*TMPDIR"),
        (KeysRefused("s3://models/m", "no credentials"), "s3://models/m: no credentials. Set AWS_ACCESS_KEY_ID"),
        (AccessDenied("s3://models/m", "403"), "403. Ask for access"),
        (NotFound("s3://models/m", "no such object"), "Check the path"),
        (Unreachable("s3://models/m", "timed out"), "The same command again continues"),
    ],
)
def test_what_a_store_says_has_its_own_remedy(
    error: Exception, words: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def fails(_: object) -> None:
        raise error

    monkeypatch.setattr("ad_jobs.decide.decide", fails)
    done = run("decide", tmp_path, "--top", "3")
    assert done.exit_code == 1
    assert re.search(words, done.output.replace("\n", " ")), done.output


def test_an_error_of_the_system_that_is_no_full_disk_is_not_hidden(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def fails(_: object) -> None:
        raise OSError(errno.EBADF, "Bad file descriptor")

    monkeypatch.setattr("ad_jobs.decide.decide", fails)
    assert isinstance(run("decide", tmp_path, "--top", "3").exception, OSError)


def test_a_review_ends_as_what_is_interrupted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    class Ended:
        def serve(self, ready: Callable[[str], object]) -> None:
            ready("http://127.0.0.1")

    monkeypatch.setattr("ad_jobs.review.review", lambda _: Ended())
    assert run("review", tmp_path).exit_code == 130


def refused(result: Result, *words: str) -> None:
    """Exit 2 with one message that holds the words, and no traceback."""
    assert result.exit_code == 2, result.output + str(result.exception)
    assert isinstance(result.exception, SystemExit)
    for word in words:
        assert word in result.output, result.output


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    for number in range(3):
        Image.fromarray(rng.integers(0, 256, (40, 40), np.uint8)).save(folder / f"{number}.png")
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    config = registry.configure("mkd", {"weights": "random", "epochs": 1})
    detector = registry.create("mkd", config, InputSpec(channels=3, height_px=32, width_px=32))
    policy = PixelPolicy(channels=3, height_px=32, width_px=32)
    model_id = artifact.save(folder, "mkd", detector, policy.model_dump(mode="json"), {})
    calibration = runkit.calibration(model_id=model_id, n_normal=3, rate=0.0, rate_high=0.7, source="")
    write_calibration(str(folder), Calibrated(calibration, b""))
    return folder


def test_help_imports_neither_torch_nor_ray() -> None:
    program = (
        "import sys; from ad_jobs.cli.app import app\n"
        "try: app(['fit', '--help'])\n"
        "except SystemExit: pass\n"
        "print([name for name in ('torch', 'ray', 'pydicom', 'pandas') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


ABORTS_AT_EXIT = """
import ctypes, sys
libc = ctypes.CDLL(None)
# As a native library's thread or destructor may end a process that is done.
libc.__cxa_atexit(libc.abort, None, None)
from ad_jobs.cli import app
{before}
app.run()
"""


@pytest.mark.parametrize(
    ("words", "before", "code", "said"),
    [
        (["--version"], "", 0, "retroscan "),
        (["detectors", "--json"], "", 0, "]\n"),
        (["scan"], "", 2, "Missing argument"),
        (["show", "/nowhere"], "", 2, "/nowhere"),
        (["--version"], "def broken(words=None): raise KeyError('left')\napp.main = broken", 1, "KeyError: 'left'\n"),
        (["--version"], "import atexit\napp.main = lambda: atexit.register(print, 'a hook')", 0, "a hook\n"),
    ],
)
def test_a_process_ends_as_its_verb_did(words: list[str], before: str, code: int, said: str) -> None:
    """Whatever native libraries do at exit; what was printed into a pipe, and a verb's own hooks, are not lost."""
    program = ABORTS_AT_EXIT.format(before=before)
    done = subprocess.run([sys.executable, "-c", program, *words], capture_output=True, text=True, check=False)
    assert done.returncode == code, done
    assert said in done.stdout + done.stderr


@pytest.mark.parametrize("verb", sorted(get_command(app).commands))
def test_every_verb_has_help_with_an_example(verb: str) -> None:
    result = run(verb, "--help")
    assert result.exit_code == 0
    assert "Example:" in result.output
    assert f"retroscan {verb}" in result.output


def test_missing_folder(tmp_path: Path, model: Path) -> None:
    gone = tmp_path / "gone"
    refused(run("index", gone, "--out", tmp_path / "m"), str(gone))
    refused(run("fit", "--detector", "mkd", "--normal", gone, "--out", tmp_path / "m"), str(gone))
    refused(run("scan", gone, "--model", model, "--out", tmp_path / "r"), str(gone))
    refused(run("calibrate", model, "--normal", gone, "--max-fpr", "0.01"), str(gone))
    for verb in (("evaluate", "--labels", "x.csv"), ("report",), ("verify",)):
        refused(run(verb[0], gone, *verb[1:]))
    assert not (tmp_path / "m").exists()
    assert not (tmp_path / "r").exists()


def test_empty_source(tmp_path: Path, model: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    refused(run("index", empty, "--out", tmp_path / "m"), str(empty))
    refused(run("fit", "--detector", "mkd", "--normal", empty, "--out", tmp_path / "m"), str(empty))
    refused(run("scan", empty, "--model", model, "--out", tmp_path / "r"), str(empty))


@pytest.mark.s3
@pytest.mark.usefixtures("s3")
def test_wrong_bucket(tmp_path: Path, model: Path) -> None:
    refused(run("index", "s3://no-such-bucket-here/x", "--out", tmp_path / "m"), "no-such-bucket-here")
    refused(run("scan", "s3://no-such-bucket-here/x", "--model", model, "--out", tmp_path / "r"), "no-such-bucket-here")


def test_unknown_detector(tmp_path: Path, pictures: Path) -> None:
    refused(
        run("fit", "--detector", "mdk", "--normal", pictures, "--out", tmp_path / "m"),
        "mdk",
        "mkd",
        "retroscan detectors",
    )


def test_unknown_option_of_a_detector(tmp_path: Path, pictures: Path) -> None:
    result = run("fit", "--detector", "mkd", "--normal", pictures, "--out", tmp_path / "m", "--set", "backbon=vgg16")
    refused(result, "backbon", "backbone")


def test_missing_weights_name_three_ways(tmp_path: Path, pictures: Path) -> None:
    result = run(
        "fit",
        "--detector",
        "mkd",
        "--normal",
        pictures,
        "--out",
        tmp_path / "m",
        "--set",
        "backbone=vgg16",
        "--set",
        f"weights={tmp_path / 'none.safetensors'}",
    )
    refused(result, "torchvision", "weights=FILE", "efficientnet_lite0")


def test_a_detector_that_learns_from_anomalous_images_needs_some(tmp_path: Path, pictures: Path) -> None:
    refused(run("fit", "--detector", "cyclegan", "--normal", pictures, "--out", tmp_path / "m"), "--anomalous")


def test_anomalous_images_for_a_detector_that_takes_none(tmp_path: Path, pictures: Path) -> None:
    result = run("fit", "--detector", "mkd", "--normal", pictures, "--anomalous", pictures, "--out", tmp_path / "m")
    refused(result, "normal images alone", "calibrate")


def test_model_of_another_version(tmp_path: Path, model: Path, pictures: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(model, other)
    record = json.loads((other / "detector.json").read_text())
    (other / "detector.json").write_text(json.dumps({**record, "format": 99}))
    refused(run("scan", pictures, "--model", other, "--out", tmp_path / "r"), "format 99")
    refused(run("score", other, pictures / "0.png"), "format 99")


def test_no_model_and_no_calibration(tmp_path: Path, model: Path, pictures: Path) -> None:
    refused(run("scan", pictures, "--model", tmp_path / "none", "--out", tmp_path / "r"), "retroscan fit")
    bare = tmp_path / "bare"
    bare.mkdir()
    for name in ("detector.json", "weights.safetensors"):
        (bare / name).write_bytes((model / name).read_bytes())
    refused(run("scan", pictures, "--model", bare, "--out", tmp_path / "r"), "retroscan calibrate")


def test_the_same_model_twice(tmp_path: Path, model: Path, pictures: Path) -> None:
    refused(run("scan", pictures, "--model", model, "--model", model, "--out", tmp_path / "r"), "--model")


@pytest.mark.parametrize("size", ["0", "128x", "x128", "128x64x3", "large", "-5", "20000"])
def test_sizes_that_are_none(tmp_path: Path, pictures: Path, size: str) -> None:
    refused(run("fit", "--detector", "mkd", "--normal", pictures, "--out", tmp_path / "m", f"--size={size}"), "--size")


def test_an_image_size_too_small_for_the_backbone(tmp_path: Path, pictures: Path) -> None:
    result = run(
        "fit",
        "--detector",
        "mkd",
        "--normal",
        pictures,
        "--out",
        tmp_path / "m",
        "--size",
        "8",
        "--set",
        "backbone=vgg16",
        "--set",
        "weights=random",
    )
    refused(result, "8x8", "--size")


def test_calibrate_takes_exactly_one_rate(model: Path, pictures: Path) -> None:
    refused(run("calibrate", model, "--normal", pictures), "--max-fpr")
    refused(run("calibrate", model, "--normal", pictures, "--max-fpr", "0.1", "--max-fnr", "0"), "--max-fnr")
    refused(run("calibrate", model, "--normal", pictures, "--max-fpr", "1.5"), "1.5")
    refused(run("calibrate", model, "--normal", pictures, "--max-fnr", "0"), "--anomalous")


def test_sql_that_is_none(tmp_path: Path, model: Path, pictures: Path) -> None:
    result = run("scan", pictures, "--model", model, "--out", tmp_path / "r", "--where", "modalty = 'MR'")
    refused(result, "modalty")


def test_calibrate_writes_what_it_prints(model: Path, pictures: Path) -> None:
    result = run("calibrate", model, "--normal", pictures, "--max-fpr", "0.2", "--json")
    assert result.exit_code == 0, result.output
    written = json.loads((model / "calibration.json").read_text())
    assert json.loads(result.stdout) == written
    assert written["n_normal"] == 3
    assert (written["rate"], written["rule"]) == (0.0, "max_fpr")


def test_calibrate_takes_a_model_that_has_no_calibration_yet(tmp_path: Path, model: Path, pictures: Path) -> None:
    for name in ("detector.json", "weights.safetensors"):
        (tmp_path / name).write_bytes((model / name).read_bytes())
    assert run("calibrate", tmp_path, "--normal", pictures, "--max-fpr", "0.2").exit_code == 0
    assert (tmp_path / "calibration.json").exists()


def test_score_prints_json_for_good_and_bad_images(tmp_path: Path, model: Path, pictures: Path) -> None:
    bad = tmp_path / "bad.png"
    bad.write_bytes(b"no picture")
    assert run("score", model, pictures / "0.png").exit_code == 0
    result = run("score", model, pictures / "0.png", bad, tmp_path / "missing.png")
    assert result.exit_code == 1
    assert "2 of 3 images could not be scored: not_found, unknown_format." in result.stderr
    good, failed, missing = json.loads(result.stdout)
    assert missing["error_code"] == "not_found"
    assert good["status"] == "scored"
    assert np.isfinite(good["score"])
    assert (failed["status"], failed["error_code"], failed["score"]) == ("failed", "unknown_format", None)


def test_config_file_gives_options_and_flags_win(tmp_path: Path, model: Path, pictures: Path) -> None:
    config = tmp_path / "job.yaml"
    config.write_text(f"model: {model}\nnormal: {pictures}\nmax-fpr: 0.4\n")
    result = run("calibrate", "--config", config, "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["target"] == 0.4
    result = run("calibrate", "--config", config, "--max-fpr", "0.25", "--json")
    assert json.loads(result.stdout)["target"] == 0.25
    config.write_text("max_frp: 0.4\n")
    refused(run("calibrate", "--config", config), "max_frp", "max_fpr")
    refused(run("calibrate", "--config", tmp_path / "none.yaml"), "none.yaml")


def test_detectors_as_json_lists_the_registry() -> None:
    result = run("detectors", "--json")
    assert {row["detector"] for row in json.loads(result.stdout)} == set(registry.DETECTORS)


def test_plain_values() -> None:
    assert parse_size("256x128") == (256, 128)
    assert parse_size("64") == (64, 64)
    assert parse_window("-100,300") == (-100.0, 300.0)
    assert pairs("--set", ["layers=[2, 3]", "backbone=vgg16", "blur=2.5", "opening=false"]) == {
        "layers": [2, 3],
        "backbone": "vgg16",
        "blur": 2.5,
        "opening": False,
    }
    for bad in ("wide", "3,1", "1,2,3"):
        with pytest.raises(UsageError):
            parse_window(bad)
    with pytest.raises(UsageError):
        pairs("--set", ["epochs"])


def test_a_name_steers_neither_a_terminal_nor_a_log(tmp_path: Path) -> None:
    folder = tmp_path / "archive"
    folder.mkdir()
    (folder / "a.png").write_bytes(b"x")
    (folder / "itself").symlink_to("itself")
    odd = os.fsdecode(os.fsencode(tmp_path) + b"/odd \x1b[31m\xff\n2026-01-01 forged")
    env = os.environ | {"PYTHONIOENCODING": "utf-8:strict"}

    def said(*words: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "ad_jobs", *words]
        return subprocess.run(command, capture_output=True, text=True, env=env, check=False)

    done = said("index", str(folder), "--out", odd)
    assert done.returncode == 0, done.stderr
    assert "listing: 1 link was not followed." in done.stderr
    assert "1 object in" in done.stdout
    # Another source into the same folder: both are named.
    again = said("index", odd + "-source", "--out", odd)
    assert again.returncode == 2
    assert "\x1b" not in again.stderr + done.stderr

    record = logging.LogRecord("retroscan", logging.INFO, "", 0, "left out: %s", ("a\x1b[31m\nforged",), None)
    assert _OneLine("%(message)s").format(record) == r"left out: a\x1b[31m\nforged"
