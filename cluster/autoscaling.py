"""An autoscaling cluster that has grown to the size its deployment asks for, before work is divided on it.

Such a cluster starts with no worker, and grows by what waits in it.
A scan waits for nothing: it divides what is there.
So the deployment names a size, in the environment of the process that connects, and here it is waited for.
"""

from __future__ import annotations

import logging
import os
import time
from typing import NamedTuple

import ray
from ray.util.placement_group import placement_group, remove_placement_group

from cluster.counting import counted
from cluster.errors import ClusterError

log = logging.getLogger("retroscan.autoscaling")

CPUS = "RETROSCAN_CLUSTER_CPUS"
GPUS = "RETROSCAN_CLUSTER_GPUS"
# How long nodes may take to come: to be found, to boot, to install or to pull an image of some gigabytes.
PATIENCE_S = 1800.0
_POLL_S = 1.0
_TELL_EVERY_S = 60.0


class Size(NamedTuple):
    """CPUs and GPUs of all workers together."""

    cpus: int
    gpus: int


def asked() -> Size:
    """The size that RETROSCAN_CLUSTER_CPUS and RETROSCAN_CLUSTER_GPUS ask for; 0 where one is not set.

    Raises:
        ClusterError: one of them is no count.
    """
    return Size(_count(CPUS), _count(GPUS))


def _count(name: str) -> int:
    text = os.environ.get(name, "").strip() or "0"
    if not text.isascii() or not text.isdigit():
        raise ClusterError(f"{name} is a whole number. Got: {text!r}.", "Set it to a count, or unset it.")
    return int(text)


def grow(size: Size, patience_s: float = PATIENCE_S) -> Size:
    """What the connected cluster has once it is as large as `size`, or after `patience_s`.

    Fewer nodes than asked for are a slower scan, and go on: spot capacity comes and goes.
    The kind that did not come at all is an error: a scan asked to use GPUs must not run for weeks on CPUs.

    Raises:
        ClusterError: no CPU came, or GPUs were asked for and none came.
    """
    has = _has()
    if not _short(has, size):
        return has
    deadline, tell = time.monotonic() + patience_s, 0.0
    # What waits makes the cluster grow. Each CPU and GPU waits by itself, so that those that come are held, and their
    # nodes not taken for idle, until the last is there. All of it ends with this process, however it ends.
    waiting = [
        placement_group([{kind: 1}]) for kind, count in zip(("CPU", "GPU"), size, strict=True) for _ in range(count)
    ]
    try:
        while _short(has := _has(), size) and time.monotonic() < deadline:
            if time.monotonic() >= tell:
                log.info("Waiting for nodes: %s of %s.", _text(has), _text(size))
                tell = time.monotonic() + _TELL_EVERY_S
            time.sleep(_POLL_S)
    finally:
        for group in waiting:
            remove_placement_group(group)
    if has.cpus == 0 or (size.gpus and not has.gpus):
        raise ClusterError(
            f"The cluster must grow to {_text(size)}. Got: {_text(has)} after {patience_s:g} s.",
            f"Look at `ray status` on the head: quota, spot capacity, the largest number of workers. Or ask for less "
            f"by {CPUS} and {GPUS}.",
        )
    if _short(has, size):
        log.warning("Going on with %s of %s.", _text(has), _text(size))
    return has


def _has() -> Size:
    has = ray.cluster_resources()
    return Size(int(has.get("CPU", 0)), int(has.get("GPU", 0)))


def _short(has: Size, size: Size) -> bool:
    return has.cpus < size.cpus or has.gpus < size.gpus


def _text(size: Size) -> str:
    return f"{counted(size.cpus, 'CPU')} and {counted(size.gpus, 'GPU')}"
