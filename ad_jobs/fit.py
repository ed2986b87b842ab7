"""`retroscan fit`: decode the normal images once, train a detector on Ray Train, hold a tenth out, calibrate on it.

The same command again continues an interrupted fit from its last checkpoint. Everything that decides the result stands
in one digest, which names the training: another command into the same folder is refused.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import ray
import ray.train
import torch
from numpy.typing import NDArray
from ray.train import Checkpoint, CheckpointConfig, FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer

from ad_jobs.calibrate import calibrate_on
from ad_jobs.config import FitSpec
from ad_jobs.errors import ImageError, JobError, UsageError
from ad_jobs.fetching import Source, fetch_all, prepare
from ad_jobs.images.decode import to_input
from ad_jobs.images.guard import GuardedDecoder
from ad_jobs.images.policy import Limits, PixelPolicy
from ad_jobs.modelstore import open_model, publish, read_record, write_calibration
from ad_jobs.results.run import versions
from ad_jobs.sources import SourceObject, read_source
from ad_jobs.split import pair, split_anomalous, split_by_group
from cluster import board as boards
from cluster import session as sessions
from cluster import storage
from models import registry
from models.detector import (
    Batch,
    ConfigError,
    Detector,
    DetectorConfig,
    InputSpec,
    Phase,
    Runtime,
    WeightsError,
)

log = logging.getLogger("retroscan.fit")

CHUNK = 64  # objects decoded by one task
CHECKPOINTS = 10  # over a whole fit
ZERO_FN_MARGIN = 0.05  # how far the zero-miss threshold lies below the lowest held-out anomalous score


@dataclass(frozen=True)
class Decoded:
    """The images of one source, in the object store: chunks of uint16 [c, H, W], and what is known of each image."""

    chunks: list[ray.ObjectRef[list[NDArray[np.uint16]]]]
    position: list[tuple[int, int]]  # of every image: chunk, row
    group: list[str]
    sha256: list[str]
    failed: dict[str, int]  # images by error code

    def __len__(self) -> int:
        return len(self.position)


def fit(spec: FitSpec) -> dict[str, Any]:
    """Fit, save and calibrate a model; its record (detector.json).

    Raises:
        UsageError: a request that cannot be carried out: unknown detector or option, empty source, a folder in use.
        JobError: no image could be decoded, or the training failed.
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

    with sessions.session(spec.address) as connected:
        images = decode_all(normal, policy, spec.limits, "normal")
        abnormal = decode_all(anomalous, policy, spec.limits, "anomalous") if anomalous else None
        train, held_out = split_by_group(images.group, spec.seed)
        log.info("%d normal images: %d to fit, %d held out.", len(images), len(train), len(held_out))
        abnormal_train: list[int] = []
        abnormal_held: list[int] = []
        if abnormal is not None:
            abnormal_train, abnormal_held = split_anomalous(abnormal.group, spec.seed)
            log.info(
                "%d anomalous images: %d to fit, %d held out for the threshold.",
                len(abnormal), len(abnormal_train), len(abnormal_held),
            )  # fmt: skip
        loop = {
            "kind": spec.detector,
            "config": config.model_dump(mode="json"),
            "spec": input_spec.model_dump(),
            "seed": spec.seed,
            "threads": _threads(connected.cpus, spec.workers),
            "images": images,
            "train": train,
            "held_out": held_out,
            "abnormal": abnormal,
            "abnormal_train": abnormal_train,
            "initial": ray.put(detector.state_dict()),
        }
        checkpoint, curve = _train(loop, spec, digest, out, connected)
        detector.load_state_dict(checkpoint)
        detector.eval()
        record = {
            "fit_digest": digest,
            "seed": spec.seed,
            "workers": spec.workers,
            "limits": spec.limits.model_dump(),
            "versions": versions(),
            "seconds": round(time.monotonic() - started, 1),  # of this command: a continued fit took longer
            "fitted_at": datetime.now(UTC).isoformat(timespec="seconds"),
            "data": _fingerprint(spec, images, train, held_out, abnormal, abnormal_held),
        }
        curve_json = json.dumps(curve, indent=1) + "\n"
        storage.write_bytes(storage.join(out, "fit", "curve.json"), curve_json.encode())
        model = publish(out, spec.detector, detector, policy, record)
        # A detector that learns from anomalous images is made for missing none of them (Cycle-GAN AD, sec. 7).
        rate: dict[str, float] = {"max_fpr": 0.01}
        if abnormal is not None:
            rate = {"max_fnr": 0.0, "margin": ZERO_FN_MARGIN}
        calibration = calibrate_on(
            detector,
            (_pixels(images, index) for index in held_out),
            model_id=str(model["model_id"]),
            anomalous=(_pixels(abnormal, index) for index in abnormal_held) if abnormal else (),
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


# --- Images


def decode_all(objects: list[SourceObject], policy: PixelPolicy, limits: Limits, what: str) -> Decoded:
    """Fetch and decode every object once, in parallel tasks; bad ones are counted and left out.

    Raises:
        JobError: not one image could be decoded.
    """
    task = ray.remote(num_cpus=1, num_returns=2)(_decode_chunk)
    sources = [Source(number, o.uri, o.bytes) for number, o in enumerate(objects)]
    chunks, reports = [], []
    for start in range(0, len(sources), CHUNK):
        chunk, report = task.remote(sources[start : start + CHUNK], policy, limits)
        chunks.append(chunk)
        reports.append(report)
    decoded = Decoded(chunks, [], [], [], {})
    for number, report in enumerate(ray.get(reports)):
        rows = 0
        for object_id, frames, study, sha256, code in report:
            if code is not None:
                decoded.failed[code] = decoded.failed.get(code, 0) + 1
                log.warning("%s image left out: %s (%s)", what, objects[object_id].uri, code)
                continue
            # Images of one study, or of one group of the list, are held out together or not at all.
            group = objects[object_id].group or study or objects[object_id].uri
            for frame in range(frames):
                decoded.position.append((number, rows))
                decoded.group.append(group)
                decoded.sha256.append(f"{sha256}/{frame}")
                rows += 1
    if not decoded.position:
        raise JobError(
            f"None of the {len(objects)} {what} images could be decoded ({decoded.failed}).",
            "Look at one with another viewer; the codes are explained in the README.",
        )
    return decoded


def _decode_chunk(
    sources: list[Source], policy: PixelPolicy, limits: Limits
) -> tuple[list[NDArray[np.uint16]], list[tuple[int, int, str | None, str | None, str | None]]]:
    pixels: list[NDArray[np.uint16]] = []
    report: list[tuple[int, int, str | None, str | None, str | None]] = []
    with GuardedDecoder() as decoder:
        for fetched in fetch_all(sources, limits.max_bytes):
            ready = prepare(fetched, policy, limits, decoder)
            code = ready.error.code.value if isinstance(ready.error, ImageError) else None
            study = ready.header.get("study_uid")
            report.append(
                (
                    ready.source.object_id,
                    len(ready.frames),
                    str(study) if study else None,
                    ready.content_sha256,
                    code,
                )
            )
            pixels += [frame.pixels for frame in ready.frames]
    return pixels, report


def _fingerprint(
    spec: FitSpec,
    images: Decoded,
    train: list[int],
    held_out: list[int],
    abnormal: Decoded | None,
    abnormal_held: list[int],
) -> dict[str, Any]:
    """What the model was fitted on: counts, and digests over content, so that a copy elsewhere gives the same."""

    def digest(decoded: Decoded, positions: list[int]) -> str:
        return hashlib.sha256("\n".join(sorted(decoded.sha256[p] for p in positions)).encode()).hexdigest()

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


def _pixels(images: Decoded, index: int) -> NDArray[np.uint16]:
    chunk, row = images.position[index]
    found: NDArray[np.uint16] = ray.get(images.chunks[chunk])[row]
    return found


# --- Training


def _threads(cpus: float, workers: int) -> int:
    asked = os.environ.get("OMP_NUM_THREADS")
    return int(asked) if asked and asked.isdigit() else max(1, int(cpus) // workers)


def _train(
    loop: dict[str, Any], spec: FitSpec, digest: str, out: str, connected: sessions.Session
) -> tuple[dict[str, torch.Tensor], list[dict[str, Any]]]:
    """Run the training to its end; the fitted detector's state dict, and the loss curve."""
    # Train V2 is this line's own; the variable must be set before the trainer is built.
    os.environ.setdefault("RAY_TRAIN_V2_ENABLED", "1")
    filesystem, path = storage.filesystem(storage.join(out, "fit"))
    board = boards.board()
    on_gpu = connected.gpus >= spec.workers
    cpus = max(1.0, connected.cpus // spec.workers)
    trainer = TorchTrainer(
        _worker,
        train_loop_config={**loop, "board": board},
        scaling_config=ScalingConfig(
            num_workers=spec.workers,
            use_gpu=on_gpu,
            resources_per_worker={"CPU": cpus, **({"GPU": 1} if on_gpu else {})},
        ),
        run_config=RunConfig(
            name=digest,  # the same fit resumes; another has another name
            storage_path=path,
            storage_filesystem=filesystem,
            failure_config=FailureConfig(max_failures=3),
            checkpoint_config=CheckpointConfig(num_to_keep=1),
        ),
    )
    try:
        with boards.listening(board, log):
            result = trainer.fit()
    except ray.train.TrainingFailedError as error:
        raise JobError(
            f"The training failed: {_root_cause(error)}",
            "The same command continues from the last checkpoint.",
        ) from error
    if result.checkpoint is None:
        raise JobError("The training ended without a checkpoint.", f"Remove {out}/fit and fit again.")
    with result.checkpoint.as_directory() as folder:
        state = torch.load(Path(folder) / "fit.pt", map_location="cpu", weights_only=True)
    return state["detector"], state["curve"]


def _root_cause(error: BaseException) -> str:
    while error.__cause__ is not None:
        error = error.__cause__
    return f"{type(error).__name__}: {error}"


def _worker(loop: dict[str, Any]) -> None:
    """One rank: build, resume, train phase after phase, report checkpoints."""
    torch.set_num_threads(loop["threads"])
    torch.manual_seed(loop["seed"])
    context = ray.train.get_context()
    config = registry.configure(loop["kind"], loop["config"])
    detector = registry.create(loop["kind"], config, InputSpec.model_validate(loop["spec"]), pretrained=False)
    detector.load_state_dict(ray.get(loop["initial"]))
    learner = detector.learner(_runtime(loop["seed"]))
    data = _Batches(loop, config.batch_size, context.get_world_rank(), context.get_world_size())
    progress = _Progress(learner.phases, loop["board"] if context.get_world_rank() == 0 else None)

    checkpoint = ray.train.get_checkpoint()
    state: dict[str, Any] | None = None
    if checkpoint is not None:
        with checkpoint.as_directory() as folder:
            state = torch.load(Path(folder) / "fit.pt", map_location="cpu", weights_only=True)
        progress.curve = state["curve"]
        if state["phase"] == len(
            learner.phases
        ):  # the training had ended; what came after it was interrupted
            _report({}, state["phase"], 0, progress.curve, state["detector"])
            return

    for number, phase in enumerate(learner.phases):
        first = 0
        if state is not None:
            if number < state["phase"]:
                continue
            learner.start(phase.name)
            learner.load_state_dict(state["learner"])
            first, state = state["epoch"], None
        else:
            learner.start(phase.name)
        for epoch in range(first, phase.epochs):
            losses: dict[str, list[torch.Tensor]] = {}
            for batch in data.epoch(number, epoch, phase.images, detector.spec.channels):
                for name, value in learner.step(batch).items():
                    losses.setdefault(name, []).append(value)
            learner.end_epoch()
            means = {name: float(torch.stack(values).mean()) for name, values in losses.items()}
            progress.add(phase, epoch, means)
            if progress.due(phase, epoch):
                _report(learner.state_dict(), number, epoch + 1, progress.curve, None)
        learner.finish(phase.name)
    # The last report carries the fitted detector: phase = len(phases) tells a resumed worker that all is done.
    _report({}, len(learner.phases), 0, progress.curve, detector.state_dict())


def _runtime(seed: int) -> Runtime:
    context = ray.train.get_context()
    world = context.get_world_size()
    device = ray.train.torch.get_device()

    def wrap(network: torch.nn.Module) -> torch.nn.Module:
        return ray.train.torch.prepare_model(network) if world > 1 else network.to(device)

    def all_reduce_sum(tensor: torch.Tensor) -> torch.Tensor:
        if world > 1:
            torch.distributed.all_reduce(tensor)
        return tensor

    return Runtime(
        device=device,
        wrap=wrap,
        all_reduce_sum=all_reduce_sum,
        rank=context.get_world_rank(),
        world=world,
        seed=seed,
    )


class _Batches:
    """A phase's images as batches: one seeded order an epoch, the same on every rank, each taking its share."""

    def __init__(self, loop: dict[str, Any], batch_size: int, rank: int, world: int) -> None:
        self._images: Decoded = loop["images"]
        self._chunks = ray.get(self._images.chunks)  # read from the object store's memory, not copied
        self._sets: dict[str, list[int]] = {"train": loop["train"], "held_out": loop["held_out"]}
        self._abnormal: Decoded | None = loop["abnormal"]
        self._abnormal_chunks = ray.get(self._abnormal.chunks) if self._abnormal else []
        self._abnormal_train: list[int] = loop["abnormal_train"]
        self._batch_size, self._rank, self._world, self._seed = batch_size, rank, world, loop["seed"]

    def epoch(self, phase: int, epoch: int, images: str, channels: int) -> Iterator[Batch]:
        rng = np.random.default_rng((self._seed, phase, epoch))
        chosen = self._sets[images]
        paired = self._abnormal if images == "train" else None
        if paired is None:
            order = rng.permutation(len(chosen))
        else:
            order, partners = pair(len(chosen), len(self._abnormal_train), rng)
        for start in range(0, len(order), self._batch_size):
            rows = order[start : start + self._batch_size]
            if len(rows) < self._world:
                continue  # too few for every rank to take a step
            mine = slice(start + self._rank, start + len(rows), self._world)
            normal = _stack(self._images, self._chunks, [chosen[row] for row in order[mine]], channels)
            anomalous = None
            if paired is not None:
                drawn = [self._abnormal_train[row] for row in partners[mine]]
                anomalous = _stack(paired, self._abnormal_chunks, drawn, channels)
            yield Batch(normal, torch.from_numpy(order[mine].astype(np.int64)), anomalous)


def _stack(
    decoded: Decoded, chunks: list[list[NDArray[np.uint16]]], positions: list[int], channels: int
) -> torch.Tensor:
    rows = (decoded.position[position] for position in positions)
    return torch.from_numpy(np.stack([to_input(chunks[chunk][row], channels) for chunk, row in rows]))


class _Progress:
    """The loss curve, when a checkpoint is due, and what the user is told."""

    def __init__(self, phases: tuple[Phase, ...], board: Any) -> None:
        self._board = board  # of rank 0; None on the others
        self._every = max(1, math.ceil(sum(phase.epochs for phase in phases) / CHECKPOINTS))
        self.curve: list[dict[str, Any]] = []

    def add(self, phase: Phase, epoch: int, losses: dict[str, float]) -> None:
        self.curve.append({"phase": phase.name, "epoch": epoch + 1, **losses})
        if self._board is not None and losses and (epoch == 0 or (epoch + 1) % self._every == 0):
            shown = ", ".join(f"{name} {value:.4g}" for name, value in losses.items())
            self._board.say.remote(f"{phase.name}, epoch {epoch + 1} of {phase.epochs}: {shown}")

    def due(self, phase: Phase, epoch: int) -> bool:
        return (epoch + 1) % self._every == 0 and epoch + 1 < phase.epochs


def _report(
    learner: dict[str, Any],
    phase: int,
    epoch: int,
    curve: list[dict[str, Any]],
    detector: dict[str, torch.Tensor] | None,
) -> None:
    """Report one checkpoint; it counts once every rank has come here."""
    state = {"learner": learner, "phase": phase, "epoch": epoch, "curve": curve, "detector": detector}
    metrics = {"phase": phase, "epoch": epoch}
    if ray.train.get_context().get_world_rank() != 0:
        ray.train.report(metrics)
        return
    with tempfile.TemporaryDirectory() as folder:
        torch.save(state, Path(folder) / "fit.pt")
        ray.train.report(metrics, checkpoint=Checkpoint.from_directory(folder))
