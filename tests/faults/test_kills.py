"""A scan that is killed at any moment, its end included, is continued by the same command, and its table is the same.

As a state machine: scans that are killed, two at once, files that a kill leaves half written, an archive that changes;
whatever came before, in the end a calm scan gives the table of one that nothing ever disturbed, and it verifies.
"""

from __future__ import annotations

import shutil
import signal
import tempfile
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import scankit as kit
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from ad_jobs.verify import verify
from tests.faults import killing

OBJECTS = kit.good_objects(16) | {
    name: data for name, (data, _) in kit.bad_objects().items() if name in ("bad/text.png", "bad/report.dcm")
}
# More than a scan of these objects makes: some of them end in time.
CHANGES = st.integers(1, 120)


class Scans(RuleBasedStateMachine):
    """An archive, and a run that is to become the table of all its objects."""

    # Set by the test.
    model: str
    archive: Path
    undisturbed: pd.DataFrame
    kills = 0

    def __init__(self) -> None:
        super().__init__()
        self.home = Path(tempfile.mkdtemp(prefix="kills-"))
        self.run = self.home / "run"
        self.began = False

    @property
    def wanted(self) -> dict[str, Any]:
        return {"source": str(self.archive), "model": [self.model], "out": str(self.run), "heatmaps": "all"}

    @rule(at=CHANGES)
    def a_scan_is_killed(self, at: int) -> None:
        assert killing.end(killing.begin(at, **self.wanted)) == -signal.SIGKILL
        self.count(1)

    @rule(first=CHANGES, second=CHANGES)
    def two_scans_are_killed_that_began_together(self, first: int, second: int) -> None:
        both = [killing.begin(at, **self.wanted) for at in (first, second)]
        for process in both:
            assert killing.end(process) in (-signal.SIGKILL, killing.REFUSED)
        self.count(2)

    @rule(at=CHANGES)
    def one_is_killed_while_another_scans(self, at: int) -> None:
        killed, other = killing.begin(at, **self.wanted), killing.begin(**self.wanted)
        assert killing.end(killed) in (-signal.SIGKILL, killing.REFUSED)
        assert killing.end(other) in (0, killing.REFUSED)
        self.count(1)

    def count(self, kills: int) -> None:
        Scans.kills += kills
        self.began = True

    @precondition(lambda self: self.unfinished)
    @rule(data=st.data(), share=st.floats(0.0, 0.99))
    def a_file_is_cut_off(self, data: st.DataObject, share: float) -> None:
        files = sorted(path for path in self.run.rglob("*") if path.is_file() and self.may_be_cut(path))
        if files:
            path = data.draw(st.sampled_from(files))
            path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])

    def may_be_cut(self, path: Path) -> bool:
        # A listing that is whole is what the run works on: there is no other.
        return path.relative_to(self.run).parts[0] != "manifest"

    @precondition(lambda self: self.run.exists())
    @rule(folder=st.sampled_from(["", "scores", "heatmaps", "manifest"]), data=st.binary(max_size=40))
    def a_temporary_file_is_left_behind(self, folder: str, data: bytes) -> None:
        (self.run / folder).mkdir(exist_ok=True)
        (self.run / folder / f".{len(data):032x}.tmp").write_bytes(data)

    @precondition(lambda self: (self.run / "manifest" / "manifest.json").exists())
    @rule(number=st.integers(0, 3))
    def the_archive_has_a_new_object(self, number: int) -> None:
        # The run works on what was listed when it began.
        (self.archive / f"late-{number}.png").write_bytes(kit.png(number))

    @property
    def unfinished(self) -> bool:
        return self.run.exists() and not (self.run / "run.json").exists()

    @invariant()
    def a_finished_run_is_whole(self) -> None:
        if self.began and (self.run / "run.json").exists():
            kit.assert_as_undisturbed(str(self.run), self.undisturbed)

    def teardown(self) -> None:
        try:
            assert killing.end(killing.begin(**self.wanted)) == 0
            kit.assert_as_undisturbed(str(self.run), self.undisturbed)
            assert verify(str(self.run), sample=4).differences == []
            left = {path.relative_to(self.run).parts[0] for path in self.run.rglob("*")}
            assert left == {"calibrations", "heatmaps", "manifest", "run.json", "scores"}
            assert not list(self.run.rglob("*.tmp"))
        finally:
            shutil.rmtree(self.home)
            for late in self.archive.glob("late-*.png"):
                late.unlink()


@pytest.fixture
def scans(tmp_path: Path) -> type[Scans]:
    """The machine over an archive and a model, and the table of a scan that nothing disturbed."""
    Scans.model = kit.make_model(tmp_path / "model")
    Scans.archive = Path(kit.write_archive(tmp_path / "archive", OBJECTS))
    wanted = {"source": str(Scans.archive), "model": [Scans.model], "out": str(tmp_path / "calm"), "heatmaps": "all"}
    assert killing.end(killing.begin(**wanted)) == 0
    Scans.undisturbed = kit.table(str(tmp_path / "calm"))
    Scans.kills = 0
    return Scans


def kill(scans: type[Scans], at_least: int, steps: int) -> None:
    """Whole lives of a run, until so many scans were killed."""
    calm = settings(
        max_examples=5,
        stateful_step_count=steps,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    lives = 0
    while scans.kills < at_least:
        # Another seed for each round, and the same ones every time.
        run_state_machine_as_test(scans, settings=settings(calm, max_examples=5 + lives))
        lives += 5 + lives


def test_a_scan_is_killed_at_any_moment(scans: type[Scans]) -> None:
    kill(scans, at_least=10, steps=4)


@pytest.mark.full
def test_a_scan_is_killed_at_two_hundred_moments(scans: type[Scans]) -> None:
    kill(scans, at_least=200, steps=6)
