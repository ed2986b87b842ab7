"""`retroscan fit`: decode the normal images, train a detector on Ray Train, hold a tenth out, calibrate on it.

The same command again continues an interrupted fit from its last checkpoint, also with another number of workers.
Everything that decides the result stands in one digest, which names the training: another command into the same folder
is refused.
"""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Generator, Sequence
from contextlib import closing
from datetime import UTC, datetime
from itertools import islice
from typing import Any, NamedTuple

from ad_jobs.archive.identifiers import Identifiers, read_identifiers
from ad_jobs.archive.sources import SourceObject, read_source
from ad_jobs.errors import RetroscanError
from ad_jobs.fitting import auto
from ad_jobs.fitting.candidates import Candidate
from ad_jobs.fitting.cost import score_cpu_ms
from ad_jobs.fitting.image_set import ImageSet, Reader, decode_all
from ad_jobs.fitting.intent import FitIntent, resolve
from ad_jobs.fitting.split import split_anomalous, split_by_group
from ad_jobs.fitting.synthetic import FRAMES
from ad_jobs.fitting.tile_set import TileSet
from ad_jobs.fitting.worker import divided, fitted
from ad_jobs.fuse import fuse
from ad_jobs.images.domain import DomainFile, Seen
from ad_jobs.images.policy import PixelPolicy, Tiles
from ad_jobs.results.run import versions
from ad_jobs.scoring.calibration import Calibrated, calibrate_on
from ad_jobs.scoring.held_out import HeldOut
from ad_jobs.scoring.model_store import SCORE_CPU_MS, demand_own, demand_writable, publish, read_record
from ad_jobs.specs import AUTO, FitSpec, takes
from cluster import object_store, storage
from cluster.counting import counted
from cluster.failures import failures
from cluster.session import Session, session
from models.detector import Detector

log = logging.getLogger("retroscan.fit")

# How far the zero-miss threshold lies below the lowest held-out anomalous score.
ZERO_FN_MARGIN = 0.05


class _Data(NamedTuple):
    """The images of a fit, decoded, and the positions of those to fit on and those held out."""

    normal: ImageSet
    fitted: list[int]
    held_out: list[int]
    anomalous: ImageSet | None
    anomalous_fitted: list[int]
    anomalous_held_out: list[int]

    @property
    def grey(self) -> bool:
        """Whether none of them is in colour."""
        return self.normal.grey and (self.anomalous is None or self.anomalous.grey)

    @property
    def tiles_fitted(self) -> int | None:
        """How many tiles are fitted on; None where images are not cut."""
        images = self.normal
        if images.policy.tiles is None:
            return None
        return len(TileSet(images.size_px, images.policy).of(self.fitted))

    @property
    def tiles_an_image(self) -> float:
        """What the detector scores for one image: the mean number of its tiles."""
        return 1.0 if self.tiles_fitted is None else self.tiles_fitted / len(self.fitted)

    @property
    def kept_bytes(self) -> int:
        """What of them stays decoded."""
        return self.normal.kept_bytes + (self.anomalous.kept_bytes if self.anomalous else 0)

    def domain(self) -> DomainFile:
        """What the fit saw, normal and anomalous, and what the model takes therefore."""
        seen = Seen.of([*self.normal.seen, *(self.anomalous.seen if self.anomalous else ())])
        return DomainFile(accepts=seen.accepted(), seen=seen)


# What was decoded for one fit serves the others of the same session, whose images are the same.
_Kept = dict[PixelPolicy, _Data]


@takes(FitSpec)
def fit(spec: FitSpec) -> dict[str, Any]:
    """Fit, save and calibrate a model, or with `auto` several, of which the best is kept; its record (detector.json).

    Raises:
        UsageError: a request that cannot be carried out: unknown detector or option, empty source, a folder in use.
        JobError: no image could be decoded, or the training failed.
        ClusterError: no cluster answers, or it has no room for the workers.
    """
    if spec.detector == AUTO:
        return _best(spec)
    return _fit(spec, read_source(spec.normal), {})


def _best(spec: FitSpec) -> dict[str, Any]:
    """The best of several fits, in one session, each policy's images decoded once."""
    normal = read_source(spec.normal)
    if (done := auto.already(spec, normal)) is not None:
        return done
    demand_writable(spec.out)
    kept: _Kept = {}
    with session(spec.address) as connected, failures("fit", RetroscanError, storage.StorageError):

        def held_out(candidate: Candidate) -> auto.HeldOutFrames:
            _, room = divided(spec, connected.nodes)
            data = _decoded(candidate.intent, normal, [], connected, room, kept)
            with closing(_held_out(data.normal, data.held_out)) as frames:
                pixels = [one.pixels for one in islice(frames, FRAMES)]
            return auto.HeldOutFrames(pixels, _fingerprint(spec, data)["held_out_sha256"])

        def fused(models: Sequence[str], out: str) -> dict[str, Any]:
            return fuse(model=models, out=out, identifiers=spec.identifiers, identifiers_key=spec.identifiers_key)

        return auto.fit_best(spec, normal, auto.Fits(lambda one: _fit(one, normal, kept), held_out, fused))


def _fit(spec: FitSpec, normal: list[SourceObject], kept: _Kept) -> dict[str, Any]:
    """Fit one detector on a source that was read, and on what is decoded of it already; its record."""
    started = time.monotonic()
    intent = resolve(spec)
    identifiers = read_identifiers(spec.identifiers, spec.identifiers_key)
    anomalous = read_source(spec.anomalous) if spec.anomalous else []
    digest = intent.digest(normal, anomalous)
    done = read_record(spec.out)
    if done is not None:
        return _already(done, digest, spec.out)
    demand_writable(spec.out)
    # Built here, before any work, so that missing weights or an impossible size are usage errors; the workers begin
    # with its weights, so that a local weights file need not lie on their nodes too.
    detector = intent.detector()
    with session(spec.address) as connected, failures("fit", RetroscanError, storage.StorageError):
        division, room = divided(spec, connected.nodes)
        data = _decoded(intent, normal, anomalous, connected, room, kept)
        if intent.takes_grey and data.grey:
            intent = intent.in_grey()
            detector = intent.detector()
            log.info("No image is in colour: %s is fitted on one channel.", spec.detector)
        options = {
            "kind": spec.detector,
            "config": intent.config.model_dump(mode="json"),
            "spec": intent.input.model_dump(),
            "seed": spec.seed,
            "threads": division.threads,
            "images": object_store.put(data.normal),
            "positions": object_store.put({"train": data.fitted, "held_out": data.held_out}),
            "abnormal": None if data.anomalous is None else object_store.put(data.anomalous),
            "abnormal_train": data.anomalous_fitted,
            "initial": object_store.put(detector.state_dict()),
        }
        state = fitted(options, digest, spec.out, division)
        detector.load_state_dict(state["detector"])
        detector.eval()
        curve_json = json.dumps(state["curve"], indent=1) + "\n"
        storage.write_bytes(storage.join(spec.out, "fit", "curve.json"), curve_json.encode())
        record = {
            "fit": spec.config(),
            "fit_digest": digest,
            "preset": spec.preset,
            "seed": spec.seed,
            "workers": spec.workers,
            "limits": spec.limits.model_dump(),
            "versions": versions(),
            # Of this command: a continued fit took longer.
            "seconds": round(time.monotonic() - started, 1),
            "fitted_at": datetime.now(UTC).isoformat(timespec="seconds"),
            SCORE_CPU_MS: round(data.tiles_an_image * score_cpu_ms(detector), 1),
            "data": _fingerprint(spec, data),
        }
        return publish(
            spec.out,
            spec.detector,
            detector,
            intent.policy,
            record,
            data.domain(),
            lambda model_id: _calibrated(spec, detector, intent.policy.tiles, model_id, data, identifiers),
        )


def _decoded(
    intent: FitIntent, normal: list[SourceObject], anomalous: list[SourceObject], has: Session, room: int, kept: _Kept
) -> _Data:
    """All images of the fit, split into those to fit on and those held out; `room` bytes of them stay decoded.

    It is kept under its policy, and what is there is not decoded again.
    """
    if intent.policy not in kept:
        room -= sum(data.kept_bytes for data in kept.values())
        kept[intent.policy] = _decode(intent, normal, anomalous, has, max(0, room))
    return kept[intent.policy]


def _decode(
    intent: FitIntent, normal: list[SourceObject], anomalous: list[SourceObject], has: Session, room: int
) -> _Data:
    spec = intent.spec
    images = decode_all(normal, intent.policy, spec.limits, "normal", cpus=has.cpus, keep_bytes=room)
    fit_on, held_out = split_by_group(images.group, spec.seed)
    log.info("%s: %d to fit, %d held out.", counted(len(images), "normal image"), len(fit_on), len(held_out))
    if not anomalous:
        return _Data(images, fit_on, held_out, None, [], [])
    left = room - images.kept_bytes
    abnormal = decode_all(anomalous, intent.policy, spec.limits, "anomalous", cpus=has.cpus, keep_bytes=left)
    abnormal_fit_on, abnormal_held = split_anomalous(abnormal.group, spec.seed)
    log.info(
        "%s: %d to fit, %d held out for the threshold.",
        counted(len(abnormal), "anomalous image"),
        len(abnormal_fit_on),
        len(abnormal_held),
    )
    return _Data(images, fit_on, held_out, abnormal, abnormal_fit_on, abnormal_held)


def _calibrated(
    spec: FitSpec, detector: Detector, tiles: Tiles | None, model_id: str, data: _Data, identifiers: Identifiers
) -> Calibrated:
    """The first calibration, from the images held out."""
    # A detector that learns from anomalous images is made for missing none of them (Cycle-GAN AD, sec. 7).
    rate: dict[str, float] = {"max_fpr": 0.01}
    if data.anomalous is not None:
        rate = {"max_fnr": 0.0, "margin": ZERO_FN_MARGIN}
    # Closed here, and not by whoever collects what was left of them: they may hold a decoder's process.
    with (
        closing(_held_out(data.normal, data.held_out)) as normal,
        closing(_held_out(data.anomalous, data.anomalous_held_out)) as anomalous,
    ):
        return calibrate_on(
            detector,
            normal,
            model_id=model_id,
            anomalous=anomalous,
            tiles=tiles,
            identifiers=identifiers,
            source="held out of " + " and ".join(filter(None, (spec.normal, spec.anomalous))),
            **rate,
        )


def _held_out(images: ImageSet | None, positions: list[int]) -> Generator[HeldOut, None, None]:
    """The images at `positions`; none of a fit without such images."""
    if images is None:
        return
    with closing(Reader(images)) as reader:
        for position, pixels in zip(positions, reader.read(positions), strict=True):
            frame = images.places[position].frame
            kept = images.series[position], images.header[position]
            yield HeldOut(pixels, images.sha256[position], frame, images.group[position], *kept)


def _already(record: dict[str, Any], digest: str, out: str) -> dict[str, Any]:
    demand_own(record, record.get("fit_digest") == digest, out, "another fit (other options or other images)")
    log.info("%s already holds this very fit (model %s): nothing to do.", out, record["model_id"])
    now, then = versions(), record.get("versions", {})
    if others := [f"{name} {then.get(name)}, here {now[name]}" for name in now if then.get(name) != now[name]]:
        log.warning(
            "It was fitted by other versions (%s), and by these it may have come out otherwise: "
            "for a model of theirs name another --out.",
            "; ".join(others),
        )
    return record


def _fingerprint(spec: FitSpec, data: _Data) -> dict[str, Any]:
    """What the model was fitted on: counts, and digests over content, so that a copy elsewhere gives the same."""

    def digest(images: ImageSet, positions: list[int]) -> str:
        frames = sorted(f"{images.sha256[p]}/{images.places[p].frame}" for p in positions)
        return hashlib.sha256("\n".join(frames).encode()).hexdigest()

    abnormal = data.anomalous
    return {
        "normal": spec.normal,
        "n_fitted": len(data.fitted),
        **({} if data.tiles_fitted is None else {"n_tiles_fitted": data.tiles_fitted}),
        "n_held_out": len(data.held_out),
        "n_groups": len(set(data.normal.group)),
        "failed": data.normal.failed,
        "fitted_sha256": digest(data.normal, data.fitted),
        "held_out_sha256": digest(data.normal, data.held_out),
        "anomalous": spec.anomalous,
        "n_anomalous": len(data.anomalous_fitted),
        "n_anomalous_held_out": len(data.anomalous_held_out),
        "anomalous_sha256": digest(abnormal, list(range(len(abnormal)))) if abnormal else None,
    }
