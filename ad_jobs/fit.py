"""`retroscan fit`: decode the normal images, train a detector on Ray Train, hold a tenth out, calibrate on it.

The same command again continues an interrupted fit from its last checkpoint, also with another number of workers.
Everything that decides the result stands in one digest, which names the training: another command into the same folder
is refused.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import time
from collections.abc import Sequence
from contextlib import ExitStack, closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from ad_jobs.archive.sources import SourceObject, read_source
from ad_jobs.calibrate import calibrate_on
from ad_jobs.cli.options import FitSpec
from ad_jobs.errors import JobError, UsageError
from ad_jobs.fitting.image_set import ImageSet, Reader, decode_all, room_for_images
from ad_jobs.fitting.loop import Batches, State, train
from ad_jobs.fitting.split import split_anomalous, split_by_group
from ad_jobs.images.policy import PixelPolicy
from ad_jobs.results.run import versions
from ad_jobs.scoring.model_store import open_model, publish, read_record, write_calibration
from cluster import object_store, storage, training
from cluster import session as sessions
from cluster.division import Node, Workers, divide_for_training
from cluster.errors import ClusterError
from models import registry
from models.detector import Detector, DetectorConfig, InputSpec
from models.errors import ConfigError, WeightsError
from models.parts.distributed import group_runtime

log = logging.getLogger("retroscan.fit")

STATE = "fit.pt"  # of a checkpoint
ZERO_FN_MARGIN = 0.05  # how far the zero-miss threshold lies below the lowest held-out anomalous score


def fit(spec: FitSpec) -> dict[str, Any]:
    """Fit, save and calibrate a model; its record (detector.json).

    Raises:
        UsageError: a request that cannot be carried out: unknown detector or option, empty source, a folder in use.
        JobError: no image could be decoded, or the training failed.
        ClusterError: no cluster answers, or it has no room for the workers.
    """
    started = time.monotonic()
    config, input_spec, policy = resolve(spec)
    normal = read_source(spec.normal)
    anomalous = read_source(spec.anomalous) if spec.anomalous else []
    out = storage.absolute(spec.out)
    digest = _digest(spec, config, policy, normal, anomalous)
    done = read_record(out)
    if done is not None:
        return _already(done, digest, out)
    # Built here, before any work, so that missing weights or an impossible size are usage errors; the workers begin with
    # its weights, so that a local weights file need not lie on their nodes too.
    detector = _new_detector(spec, config, input_spec)

    with sessions.session(spec.address) as connected, ExitStack() as opened:
        division, room = divided(spec, connected.nodes)
        images = decode_all(normal, policy, spec.limits, "normal", cpus=connected.cpus, keep_bytes=room)
        train_on, held_out = split_by_group(images.group, spec.seed)
        log.info("%d normal images: %d to fit, %d held out.", len(images), len(train_on), len(held_out))
        abnormal: ImageSet | None = None
        abnormal_train: list[int] = []
        abnormal_held: list[int] = []
        if anomalous:
            left = room - images.kept_bytes
            abnormal = decode_all(anomalous, policy, spec.limits, "anomalous", cpus=connected.cpus, keep_bytes=left)
            abnormal_train, abnormal_held = split_anomalous(abnormal.group, spec.seed)
            log.info(
                "%d anomalous images: %d to fit, %d held out for the threshold.",
                len(abnormal),
                len(abnormal_train),
                len(abnormal_held),
            )
        if registry.entry(spec.detector).takes_grey and images.grey and (abnormal is None or abnormal.grey):
            input_spec = input_spec.model_copy(update={"channels": 1})
            policy = policy.model_copy(update={"channels": 1})
            detector = _new_detector(spec, config, input_spec)
            log.info("No image is in colour: %s is fitted on one channel.", spec.detector)
        options = {
            "kind": spec.detector,
            "config": config.model_dump(mode="json"),
            "spec": input_spec.model_dump(),
            "seed": spec.seed,
            "threads": division.threads,
            "images": object_store.put(images),
            "positions": object_store.put({"train": train_on, "held_out": held_out}),
            "abnormal": None if abnormal is None else object_store.put(abnormal),
            "abnormal_train": abnormal_train,
            "initial": object_store.put(detector.state_dict()),
        }
        state = _fitted(options, digest, out, division)
        detector.load_state_dict(state["detector"])
        detector.eval()
        record = {
            "fit_digest": digest,
            "seed": spec.seed,
            "workers": spec.workers,
            "limits": spec.limits.model_dump(),
            "versions": versions(),
            "seconds": round(time.monotonic() - started, 1),  # of this command: a continued fit took longer
            "fitted_at": datetime.now(UTC).isoformat(timespec="seconds"),
            "data": _fingerprint(spec, images, train_on, held_out, abnormal, abnormal_held),
        }
        curve_json = json.dumps(state["curve"], indent=1) + "\n"
        storage.write_bytes(storage.join(out, "fit", "curve.json"), curve_json.encode())
        model = publish(out, spec.detector, detector, policy, record)
        # A detector that learns from anomalous images is made for missing none of them (Cycle-GAN AD, sec. 7).
        rate: dict[str, float] = {"max_fpr": 0.01}
        if abnormal is not None:
            rate = {"max_fnr": 0.0, "margin": ZERO_FN_MARGIN}
        calibration = calibrate_on(
            detector,
            opened.enter_context(closing(Reader(images))).read(held_out),
            model_id=str(model["model_id"]),
            anomalous=opened.enter_context(closing(Reader(abnormal))).read(abnormal_held) if abnormal else (),
            source=f"held out of {spec.normal}" + (f" and {spec.anomalous}" if abnormal else ""),
            **rate,
        )
        write_calibration(out, calibration)
    return model


def resolve(spec: FitSpec) -> tuple[DetectorConfig, InputSpec, PixelPolicy]:
    """The parts of a fit, validated; raises UsageError for what a user can mend."""
    try:
        entry = registry.entry(spec.detector)
        config = registry.configure(spec.detector, spec.options)
    except ConfigError as error:
        raise usage(error) from error
    if entry.needs_anomalous and spec.anomalous is None:
        raise UsageError(
            f"{spec.detector} learns from normal and anomalous images.",
            "no --anomalous",
            "Name some with --anomalous SOURCE, or choose another detector: `retroscan detectors`.",
        )
    if not entry.needs_anomalous and spec.anomalous is not None:
        raise UsageError(
            f"{spec.detector} is fitted on normal images alone.",
            f"--anomalous {spec.anomalous}",
            "Leave it out, or give it to `retroscan calibrate`.",
        )
    height, width = spec.size_px
    input_spec = InputSpec(
        channels=entry.channels, height_px=height, width_px=width, needs_anomalous=entry.needs_anomalous
    )
    policy = PixelPolicy.model_validate(
        {"channels": entry.channels, "height_px": height, "width_px": width, **spec.policy}
    )
    return config, input_spec, policy


def usage(error: Exception) -> UsageError:
    """A detector's own refusal (rule, value and remedy in one text) as a usage error."""
    rule, _, rest = str(error).partition(" Got: ")
    value, _, remedy = rest.partition(". ")
    return UsageError(rule, value, remedy)


def _new_detector(spec: FitSpec, config: DetectorConfig, input_spec: InputSpec) -> Detector:
    torch.manual_seed(spec.seed)
    try:
        return registry.create(spec.detector, config, input_spec)
    except (ConfigError, WeightsError) as error:
        raise usage(error) from error


def _digest(
    spec: FitSpec,
    config: DetectorConfig,
    policy: PixelPolicy,
    normal: list[SourceObject],
    anomalous: list[SourceObject],
) -> str:
    """16 hex digits over everything that decides the model: what is fitted, how, and on which objects."""
    decides = {
        "detector": spec.detector,
        "config": config.model_dump(mode="json"),
        "policy": policy.model_dump(mode="json"),
        "limits": spec.limits.model_dump(mode="json"),
        "seed": spec.seed,
        "normal": [[o.uri, o.bytes, o.etag, o.group] for o in normal],
        "anomalous": [[o.uri, o.bytes, o.etag] for o in anomalous],
    }
    return hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()[:16]


def _already(record: dict[str, Any], digest: str, out: str) -> dict[str, Any]:
    if record.get("fit_digest") != digest:
        raise UsageError(
            "One folder holds one model.",
            f"{out}, which holds model {record['model_id']} of another fit (other options or other images)",
            "Choose another --out, or remove the folder.",
        )
    open_model(out)  # an uncalibrated or damaged one is reported, not passed on
    log.info("%s already holds this very fit (model %s): nothing to do.", out, record["model_id"])
    return record


def _fingerprint(
    spec: FitSpec,
    images: ImageSet,
    train: list[int],
    held_out: list[int],
    abnormal: ImageSet | None,
    abnormal_held: list[int],
) -> dict[str, Any]:
    """What the model was fitted on: counts, and digests over content, so that a copy elsewhere gives the same."""

    def digest(decoded: ImageSet, positions: list[int]) -> str:
        frames = sorted(f"{decoded.sha256[p]}/{decoded.places[p].frame}" for p in positions)
        return hashlib.sha256("\n".join(frames).encode()).hexdigest()

    return {
        "normal": spec.normal,
        "n_fitted": len(train),
        "n_held_out": len(held_out),
        "n_groups": len(set(images.group)),
        "failed": images.failed,
        "fitted_sha256": digest(images, train),
        "held_out_sha256": digest(images, held_out),
        "anomalous": spec.anomalous,
        "n_anomalous": len(abnormal) - len(abnormal_held) if abnormal else 0,
        "n_anomalous_held_out": len(abnormal_held),
        "anomalous_sha256": digest(abnormal, list(range(len(abnormal)))) if abnormal else None,
    }


# --- Training


def divided(spec: FitSpec, nodes: Sequence[Node]) -> tuple[Workers, int]:
    """The workers on these nodes, with OMP_NUM_THREADS threads where it is set, and the bytes of images that may stay decoded.

    Raises:
        ClusterError: the nodes have no room for the workers.
    """
    asked = os.environ.get("OMP_NUM_THREADS", "")
    workers = divide_for_training(nodes, spec.workers, int(asked) if asked.isdigit() and int(asked) else None)
    return workers, room_for_images(nodes) if spec.keep_mib is None else spec.keep_mib << 20


def _fitted(options: dict[str, Any], digest: str, out: str, division: Workers) -> State:
    """Run the training to its end; its last state, which holds the fitted detector and the loss curve."""
    try:
        with training.trained(
            _work,
            options,
            name=digest,  # the same fit resumes; another has another name
            folder=storage.join(out, "fit"),
            workers=division,
            log=log,
        ) as folder:
            return _read_state(folder)
    except ClusterError as error:
        raise JobError(error.problem, error.remedy) from error


def _read_state(folder: Path) -> State:
    state: State = torch.load(folder / STATE, map_location="cpu", weights_only=True)
    return state


def _work(options: dict[str, Any]) -> None:
    """One worker: build the detector as it was at the beginning, and train it on this rank's share from the last state."""
    torch.set_num_threads(options["threads"])
    torch.manual_seed(options["seed"])
    runtime = group_runtime(training.device(), options["seed"])
    config = registry.configure(options["kind"], options["config"])
    spec = InputSpec.model_validate(options["spec"])
    detector = registry.create(options["kind"], config, spec, pretrained=False)
    detector.load_state_dict(object_store.get(options["initial"]))

    def save(state: State) -> None:
        reached = {"phase": state["phase"], "epoch": state["epoch"]}
        training.report(reached, lambda folder: torch.save(state, folder / STATE))

    def say(line: str) -> None:
        if runtime.rank == 0:
            options["board"].say.remote(line)

    with ExitStack() as opened:
        normal, abnormal = (
            ref and opened.enter_context(closing(Reader(object_store.get(ref))))
            for ref in (options["images"], options["abnormal"])
        )
        positions = object_store.get(options["positions"])
        batches = Batches(detector, runtime, normal, positions, abnormal, options["abnormal_train"])
        learner = detector.learner(runtime)
        with training.last_checkpoint() as folder:
            state = _read_state(folder) if folder else None
        train(detector, learner, batches, save=save, say=say, state=state)
