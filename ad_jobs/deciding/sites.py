"""Whether the sites of a run and those of a calibration may be told to be the same (`decide --by site`).

A calibration goes wherever its model goes, so that it names institutions only where that was asked for, and then as a
manifest does: plainly, or by a hash under a key.
Hashes without a key would be told apart as well, and undone by whoever has a list of hospitals.
"""

from __future__ import annotations

from collections.abc import Mapping

from ad_jobs.archive.identifiers import Naming
from ad_jobs.deciding.cells import By
from ad_jobs.deciding.judges import HeldOutScores
from ad_jobs.errors import UsageError


def check_sites(by: By, held_out: Mapping[str, HeldOutScores]) -> None:
    """Raise UsageError where a run is divided by its sites, and a calibration has none, or names them otherwise."""
    if by.naming is None:
        return
    how = _option(by.naming)
    calibrate = f"Calibrate the model again with {how}, and name that calibration with --calibration current."
    for held in held_out.values():
        if held.naming.mode == "none":
            raise UsageError(
                "A calibration keeps the institutions of its images where that is asked for.",
                f"--by site, and calibration {held.calibration_id}, which was not asked",
                calibrate,
            )
        if held.naming != by.naming:
            another = " under another key" if held.naming.mode == by.naming.mode else ""
            raise UsageError(
                "Sites of a run and of a calibration are the same where both are plain, or hashed under one key.",
                f"--by site of a run with {by.naming.mode} ones, and calibration {held.calibration_id} with "
                f"{held.naming.mode} ones{another}",
                calibrate,
            )


def _option(naming: Naming) -> str:
    """With what a calibration names them so."""
    if naming.mode == "plain":
        return "--identifiers plain"
    return "--identifiers hashed --identifiers-key FILE, the key that the run's manifest was indexed with"
