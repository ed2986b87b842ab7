"""A loop on several workers by Ray Train: started, followed and resumed. What it trains is the loop's own affair."""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray.train
from ray.train import Checkpoint, CheckpointConfig, FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer, get_device

from cluster import messages, storage
from cluster.division import FitDivision
from cluster.errors import ClusterError
from cluster.failures import MORE_MEMORY, OUT_OF_MEMORY, chain

# Of workers, each of which costs what was done since the last checkpoint.
MAX_FAILURES = 3


class _Trainer(TorchTrainer):
    """A trainer that leaves Ctrl-C to whoever called it.

    Ray's own handler ends the process with exit code 0, as if the fit were done; and it stays after the training, for
    whatever comes then (2.60).
    """

    def _register_sigint_handler(self, controller: Any) -> None:
        del controller


@contextmanager
def trained(
    loop: Callable[[dict[str, Any]], None],
    options: dict[str, Any],
    *,
    name: str,
    folder: str,
    workers: FitDivision,
    log: logging.Logger,
    own: tuple[type[Exception], ...] = (),
) -> Iterator[Path]:
    """Run `loop(options)` on every worker to its end; a local folder with the last checkpoint, for the block.

    Args:
        loop: a function of a module, as the workers import it.
        options: what it gets; in `board` the handle to whose `say` it may send lines for the user.
        name: of this training: the same name in the same folder continues, also with another number of workers.
        folder: where checkpoints go, local or s3.
        workers: how many there are, and what each of them gets.
        log: where the lines go.
        own: exceptions of the loop that are raised as they are.

    Raises:
        ClusterError: the loop failed, or ended without a checkpoint.
    """
    # Train V2 is this line's own; the variable must be set before the trainer is built.
    os.environ.setdefault("RAY_TRAIN_V2_ENABLED", "1")
    filesystem, path = storage.filesystem(folder)
    board = messages.board()
    trainer = _Trainer(
        loop,
        train_loop_config={**options, "board": board},
        scaling_config=ScalingConfig(
            num_workers=workers.workers,
            use_gpu=workers.gpus > 0,
            resources_per_worker={"CPU": workers.cpus} | ({"GPU": workers.gpus} if workers.gpus else {}),
        ),
        run_config=RunConfig(
            name=name,
            storage_path=path,
            storage_filesystem=filesystem,
            failure_config=FailureConfig(max_failures=MAX_FAILURES),
            checkpoint_config=CheckpointConfig(num_to_keep=1),
        ),
    )
    try:
        with messages.listening(board, log):
            result = trainer.fit()
    except ray.train.TrainingFailedError as error:
        for one in _of_workers(error):
            if isinstance(one, own):
                raise one from error
        if any("low on memory" in str(one) for one in _of_workers(error)):
            raise ClusterError(OUT_OF_MEMORY.format(what="fit"), MORE_MEMORY) from error
        *_, last = _of_workers(error)
        raise ClusterError(
            f"The training failed: {type(last).__name__}: {last}",
            "The same command continues from the last checkpoint.",
        ) from error
    if result.checkpoint is None:
        raise ClusterError("The training ended without a checkpoint.", f"Remove {folder} and fit again.")
    with result.checkpoint.as_directory() as local:
        yield Path(local)


def _of_workers(error: ray.train.TrainingFailedError) -> list[BaseException]:
    """The error, and what it came from: of the workers, where it tells them apart."""
    failed = getattr(error, "worker_failures", {}).values()
    return [*chain(error), *(one for failure in failed for one in chain(failure))]


# --- Inside the loop


def device() -> Any:
    """The torch.device of this worker."""
    return get_device()


@contextmanager
def last_checkpoint() -> Iterator[Path | None]:
    """A local folder with the checkpoint to continue from, for the block; None at the beginning."""
    checkpoint = ray.train.get_checkpoint()
    if checkpoint is None:
        yield None
        return
    with checkpoint.as_directory() as local:
        yield Path(local)


def report(metrics: dict[str, Any], write: Callable[[Path], None]) -> None:
    """Report one checkpoint, which rank 0 writes into a folder; it counts once every rank has come here."""
    if ray.train.get_context().get_world_rank() != 0:
        ray.train.report(metrics)
        return
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder))
        ray.train.report(metrics, checkpoint=Checkpoint.from_directory(folder))
