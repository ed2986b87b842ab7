"""The training of a fit on Ray Train: how the cluster is divided, what one worker does, and the state it ends with."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import torch

from ad_jobs.errors import JobError, RetroscanError
from ad_jobs.fitting.image_set import Reader, room_for_images
from ad_jobs.fitting.loop import Batches, State, train
from ad_jobs.fitting.tile_set import TileReader, TileSet
from ad_jobs.specs import FitSpec
from cluster import object_store, storage, training
from cluster.division import FitDivision, Node, divide_for_fit
from cluster.errors import ClusterError
from models import registry
from models.detector import InputSpec
from models.errors import DetectorError
from models.runtime import group_runtime

log = logging.getLogger("retroscan.fit")

# Of a checkpoint.
STATE = "fit.pt"


def divided(spec: FitSpec, nodes: Sequence[Node]) -> tuple[FitDivision, int]:
    """The workers on these nodes, and the bytes of images that may stay decoded.

    The workers have OMP_NUM_THREADS threads where it is set.

    Raises:
        ClusterError: the nodes have no room for the workers.
    """
    asked = os.environ.get("OMP_NUM_THREADS", "")
    workers = divide_for_fit(nodes, spec.workers, int(asked) if asked.isdigit() and int(asked) else None)
    return workers, room_for_images(nodes) if spec.keep_mib is None else spec.keep_mib << 20


def fitted(options: dict[str, Any], digest: str, out: str, division: FitDivision) -> State:
    """Run the training to its end; its last state, which holds the fitted detector and the loss curve."""
    try:
        with training.trained(
            work,
            options,
            # The same fit resumes; another has another name.
            name=digest,
            folder=storage.join(out, "fit"),
            workers=division,
            log=log,
            own=(RetroscanError, DetectorError, storage.StorageError),
        ) as folder:
            return _read_state(folder)
    except ClusterError as error:
        raise JobError(error.problem, error.remedy) from error
    except DetectorError as error:
        # A loss that is not finite: what stops a fit on purpose.
        raise JobError(str(error)) from error


def _read_state(folder: Path) -> State:
    state: State = torch.load(folder / STATE, map_location="cpu", weights_only=True)
    return state


def work(options: dict[str, Any]) -> None:
    """One worker: build the detector as it began, and train it on this rank's share from the last state."""
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
        images = object_store.get(options["images"])
        if images.policy.tiles is None:
            batches = Batches(detector, runtime, normal, positions, abnormal, options["abnormal_train"])
        else:
            tiles = TileSet(images.size_px, images.policy)
            of_tiles = {use: tiles.of(chosen) for use, chosen in positions.items()}
            batches = Batches(detector, runtime, TileReader(normal, tiles), of_tiles, shuffle=tiles.shuffled)
        learner = detector.learner(runtime)
        with training.last_checkpoint() as folder:
            state = _read_state(folder) if folder else None
        train(detector, learner, batches, save=save, say=say, state=state)
