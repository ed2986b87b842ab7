"""The held-out scores that a run's models are decided by: those that the run keeps, or those of a named calibration."""

from __future__ import annotations

from ad_jobs.deciding.judges import HeldOutScores
from ad_jobs.errors import UsageError
from ad_jobs.results.run import ModelRef, RunRecord, held_out_copy
from ad_jobs.scoring.calibration import Calibration, judged_by, kept_calibrations, kept_held_out
from ad_jobs.scoring.held_out import read_held_out
from ad_jobs.scoring.model_store import read_calibration


def held_out_of(run_uri: str, model: ModelRef) -> HeldOutScores | None:
    """Those that a run keeps of a model; None where its calibration kept none.

    Raises:
        UsageError: they are gone, or were changed.
    """
    if model.held_out_sha256 is None:
        return None
    table = read_held_out(held_out_copy(run_uri, model.model_id), model.held_out_sha256)
    return HeldOutScores(model.calibration_id, model.held_out_sha256, table)


def held_out_scores(run_uri: str, record: RunRecord, calibration: str | None) -> dict[str, HeldOutScores]:
    """Of each model, the scores to judge its rows against; `calibration` as of DecideSpec.

    Raises:
        UsageError: there are none, they were changed, or hold no normal image.
    """
    named = {} if calibration is None else _of_models(record, run_uri, calibration)
    found = {}
    for model in record.models:
        held: HeldOutScores | None
        if (other := named.get(model.model_id)) is None:
            uri, held = held_out_copy(run_uri, model.model_id), held_out_of(run_uri, model)
        else:
            uri, held = kept_held_out(model.uri, other.id), None
            if other.held_out_sha256 is not None:
                held = HeldOutScores(other.id, other.held_out_sha256, read_held_out(uri, other.held_out_sha256))
        if held is None:
            raise UsageError(
                "A decision is made against the held-out scores that a calibration kept.",
                f"model {model.model_id}, judged by a calibration of an earlier version, which kept none",
                f"Calibrate it again (retroscan calibrate {model.uri} --normal SOURCE --max-fpr 0.01), and name that "
                "calibration with --calibration current.",
            )
        if not held.normal.num_rows:
            raise UsageError(
                "A decision is made against held-out normals.", f"{uri}, without one", "Calibrate the model again."
            )
        found[model.model_id] = held
    return found


def _of_models(record: RunRecord, run_uri: str, wanted: str) -> dict[str, Calibration]:
    """The calibration that is named, of each model that has it; `current` is what each has now.

    Raises:
        UsageError: none has it, it is damaged, or there is another model by now.
    """
    found, known = {}, []
    for model in record.models:
        then = judged_by(run_uri, model)
        calibrated_as = model.model_id if then is None else then.model_id
        if wanted == "current":
            found[model.model_id] = read_calibration(model.uri, calibrated_as)
            continue
        calibrations, damaged = kept_calibrations(model.uri)
        if wanted in damaged:
            raise damaged[wanted]
        kept = {one.id: one for one in calibrations if one.model_id == calibrated_as}
        known += list(kept)
        if wanted in kept:
            found[model.model_id] = kept[wanted]
    if not found:
        raise UsageError(
            "A calibration is one that a model of the run keeps.",
            f"{wanted}, which none has",
            f"They have {', '.join(known) or 'none'}; or leave --calibration out for that of the run.",
        )
    return found
