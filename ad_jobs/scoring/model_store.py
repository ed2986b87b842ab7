"""Models by URI: a folder on disk or in S3, opened for scanning or published after a fit."""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from ad_jobs.errors import UsageError, flaw
from ad_jobs.images.domain import DomainFile
from ad_jobs.images.policy import Limits, PixelPolicy
from ad_jobs.scoring.calibration import CALIBRATION, Calibrated, Calibration, kept_calibration, kept_held_out
from ad_jobs.scoring.held_out import held_out_file
from ad_jobs.scoring.model_domain import DOMAIN, domain_sha256, id_under, read_domain
from ad_jobs.scoring.model_record import demand_readable
from cluster import storage
from models import record
from models.errors import ArtifactError

# Torch stands behind it, and who reads a model without building it does without.
if TYPE_CHECKING:
    from models.detector import Detector

# In detector.json: see ad_jobs.fitting.cost.
SCORE_CPU_MS = "score_cpu_ms"


@dataclass(frozen=True)
class FittedModel:
    """A model as `fit` wrote it: its record, and how its images are prepared."""

    uri: str
    record: dict[str, Any]
    policy: PixelPolicy
    limits: Limits
    # Of the file with the record, as it lies there.
    record_sha256: str
    domain: DomainFile
    # 12 hex digits over what decides a row: with another domain.json it is another model.
    model_id: str

    @property
    def calibrated_as(self) -> str:
        """The id under which a calibration is this model's: that of its fit, since a domain changes no score."""
        return str(self.record["model_id"])

    @property
    def score_cpu_ms(self) -> float | None:
        """What an image costs of one CPU's time, as the fit measured it; None in models of earlier versions."""
        return self.record.get(SCORE_CPU_MS)

    @property
    def kind(self) -> str:
        return str(self.record["kind"])


@dataclass(frozen=True)
class CalibratedModel(FittedModel):
    """A model that may flag: with its threshold and its heatmaps' scale."""

    calibration: Calibration
    # calibration.json as it lies there.
    calibration_file: bytes

    def held_out_file(self) -> bytes | None:
        """The scores that its calibration came from, as they lie there; None of a calibration that kept none.

        Raises:
            UsageError: they are gone, or were changed.
        """
        calibration = self.calibration
        if calibration.held_out_sha256 is None:
            return None
        return held_out_file(kept_held_out(self.uri, calibration.id), calibration.held_out_sha256)

    @property
    def calibration_sha256(self) -> str:
        return hashlib.sha256(self.calibration_file).hexdigest()


@dataclass(frozen=True)
class OpenModel(CalibratedModel):
    """A model ready to score: its detector built, on the CPU."""

    detector: Detector


def read_model(uri: str) -> CalibratedModel:
    """The model at `uri`, its weights and its calibration checked.

    Its detector is not built: that takes seconds and torch.

    Raises:
        UsageError: no model there, a damaged one, one of another version, or without a calibration of its own.
    """
    with local_files(uri) as folder:
        return _read_calibrated(folder, uri)


def read_calibration(uri: str, model_id: str) -> Calibration:
    """The calibration of the model at `uri`; its weights are neither fetched nor checked.

    Raises:
        UsageError: none there, a damaged one, or another model's.
    """
    with local_files(uri, (CALIBRATION,)) as folder:
        return _read_calibration(folder, uri, model_id)[0]


def open_model(uri: str) -> OpenModel:
    """The model at `uri`, ready to score.

    Raises:
        UsageError: as `read_model`, and for a model of a detector that this version does not have.
    """
    with local_files(uri) as folder:
        found = _read_calibrated(folder, uri)
        return OpenModel(**vars(found), detector=_detector(folder, found))


def read_fitted(uri: str) -> FittedModel:
    """The model at `uri`, calibrated or not, its weights checked; its detector is not built.

    Raises:
        UsageError: as `read_model`, but for the calibration.
    """
    with local_files(uri) as folder:
        return _read_fitted(folder, uri)


def calibration_of(model: FittedModel) -> Calibration | None:
    """A model's calibration, None where it has none.

    Raises:
        UsageError: a damaged one, or another model's.
    """
    with local_files(model.uri, (CALIBRATION,)) as folder:
        if not (folder / CALIBRATION).is_file():
            return None
        return _read_calibration(folder, model.uri, model.calibrated_as)[0]


def open_fitted(uri: str) -> tuple[FittedModel, Detector]:
    """The model at `uri`, calibrated or not, and its detector.

    Raises:
        UsageError: as `open_model`, but for the calibration.
    """
    with local_files(uri) as folder:
        found = _read_fitted(folder, uri)
        return found, _detector(folder, found)


def _read_fitted(folder: Path, uri: str) -> FittedModel:
    with _complete_and_unchanged(folder, uri):
        found = record.read_record(folder)
    demand_readable(found, uri)
    with _complete_and_unchanged(folder, uri):
        record.check_weights(folder, found)
    domain = read_domain(folder, uri, found)
    return FittedModel(
        uri=uri,
        record=found,
        policy=PixelPolicy.model_validate(found["policy"]),
        limits=Limits.model_validate(found.get("limits", {})),
        record_sha256=hashlib.sha256((folder / record.DETECTOR).read_bytes()).hexdigest(),
        domain=domain,
        model_id=id_under(found, domain),
    )


def _read_calibrated(folder: Path, uri: str) -> CalibratedModel:
    fitted = _read_fitted(folder, uri)
    calibration, body = _read_calibration(folder, uri, fitted.calibrated_as)
    return CalibratedModel(**vars(fitted), calibration=calibration, calibration_file=body)


def _detector(folder: Path, model: FittedModel) -> Detector:
    from models import artifact

    with _complete_and_unchanged(folder, model.uri):
        return artifact.build(folder, model.record)


@contextmanager
def _complete_and_unchanged(folder: Path, uri: str) -> Iterator[None]:
    try:
        yield
    except ArtifactError as error:
        # Of a model in S3 the folder is a copy, of which nobody knows.
        told = str(error).replace(str(folder), uri)
        raise UsageError("A model must be complete and unchanged.", uri, told) from error


def read_record(uri: str) -> dict[str, Any] | None:
    """detector.json at `uri`; None where there is no model.

    Raises:
        UsageError: a damaged record, or one of another version.
    """
    if not storage.exists(storage.join(uri, record.DETECTOR)):
        return None
    with local_files(uri, names=(record.DETECTOR,)) as folder, _complete_and_unchanged(folder, uri):
        found = record.read_record(folder)
    demand_readable(found, uri)
    return found


def demand_own(record: dict[str, Any], own: bool, out: str, other: str) -> None:
    """Raise UsageError where the model in `out`, of this record, is `other` than this command's `own`, or not whole."""
    if not own:
        raise UsageError(
            "One folder holds one model.",
            f"{out}, which holds model {record['model_id']} of {other}",
            "Choose another --out, or remove the folder.",
        )
    # An uncalibrated or damaged one is reported, not passed on.
    open_model(out)


def demand_writable(out: str) -> None:
    """Raise UsageError where no model could be written: found out before hours of work, and not after."""
    probe = storage.join(out, "fit", "probe")
    try:
        storage.write_bytes(probe, b"")
        storage.delete(probe)
    except storage.StorageError as error:
        raise UsageError(
            "--out must be a folder that this user may write.", str(error), "Name another, or check its permissions."
        ) from error


def publish(
    uri: str,
    kind: str,
    detector: Detector,
    policy: PixelPolicy,
    told: dict[str, Any],
    domain: DomainFile,
    calibrated: Callable[[str], Calibrated] | None = None,
) -> dict[str, Any]:
    """Write a fitted detector to `uri`, and what `calibrated` makes for its id; its full record.

    detector.json comes last: a folder that has it is whole.
    """
    from models import artifact

    with tempfile.TemporaryDirectory(prefix="retroscan-model-") as scratch:
        folder = Path(scratch)
        told = {**told, record.DOMAIN_SHA256: domain_sha256(domain)}
        artifact.save(folder, kind, detector, policy.model_dump(mode="json"), told)
        (folder / DOMAIN).write_text(json.dumps(domain.model_dump(mode="json"), indent=2) + "\n")
        found = record.read_record(folder)
        calibration = None if calibrated is None else calibrated(str(found["model_id"]))
        for name in (record.WEIGHTS, DOMAIN):
            storage.upload_file(folder / name, storage.join(uri, name))
        if calibration is not None:
            write_calibration(uri, calibration)
        storage.upload_file(folder / record.DETECTOR, storage.join(uri, record.DETECTOR))
        return found


def write_calibration(uri: str, calibrated: Calibrated) -> None:
    """Keep a calibration beside the model it belongs to, and make it the current one; none that is there is lost."""
    _keep_current(uri)
    calibration, held_out = calibrated
    kept = kept_calibration(uri, calibration.id)
    if not storage.exists(kept):
        storage.write_bytes(kept_held_out(uri, calibration.id), held_out)
        # Last: a calibration that is there has its scores.
        storage.write_bytes(
            kept, (json.dumps(calibration.model_dump(mode="json"), indent=2, sort_keys=True) + "\n").encode()
        )
    storage.write_bytes(storage.join(uri, CALIBRATION), storage.read_bytes(kept))


def _keep_current(uri: str) -> None:
    """Keep a calibration of an earlier version, which lies in one place alone."""
    try:
        body = storage.read_bytes(storage.join(uri, CALIBRATION))
        kept = kept_calibration(uri, Calibration.model_validate_json(body).id)
    except (storage.NotFound, ValidationError):
        # There is none, or what is there is no calibration, which whoever reads it would have been told.
        return
    if not storage.exists(kept):
        storage.write_bytes(kept, body)


@contextmanager
def local_files(
    uri: str, names: tuple[str, ...] = (record.DETECTOR, record.WEIGHTS, DOMAIN, CALIBRATION)
) -> Iterator[Path]:
    """A local folder with the named files of the model at `uri`: itself, or a copy that goes with the block."""
    if not storage.is_s3(uri):
        yield Path(uri)
        return
    with tempfile.TemporaryDirectory(prefix="retroscan-model-") as scratch:
        for name in names:
            try:
                (Path(scratch) / name).write_bytes(storage.read_bytes(storage.join(uri, name)))
            except storage.NotFound:
                # The reader of the folder says what is missing.
                continue
        yield Path(scratch)


def _read_calibration(folder: Path, uri: str, model_id: str) -> tuple[Calibration, bytes]:
    path = folder / CALIBRATION
    remedy = f"Set one with `retroscan calibrate {uri} --normal SOURCE --max-fpr 0.01`."
    if not path.is_file():
        raise UsageError("A model needs a calibration before it can flag.", f"{uri}, without {CALIBRATION}", remedy)
    body = path.read_bytes()
    try:
        calibration = Calibration.model_validate_json(body)
    except ValidationError as error:
        raise UsageError(
            f"{CALIBRATION} must hold a threshold and a scale.",
            f"{storage.join(uri, CALIBRATION)}: {flaw(error)}",
            remedy,
        ) from error
    if calibration.model_id != model_id:
        raise UsageError(
            "A calibration holds for one model.",
            f"{CALIBRATION} of model {calibration.model_id} beside model {model_id} in {uri}",
            remedy,
        )
    return calibration, body
