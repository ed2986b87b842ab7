"""`--dry-run`: how a cluster would be divided for a scan or a fit, and how much there is to do. Nothing is written.

A source that is no manifest is listed all the same, into a folder that goes again: what is left to do hangs on it.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from math import prod
from typing import Any, NamedTuple

import pyarrow as pa

from ad_jobs.archive.fetching import FETCH_AHEAD_BYTES
from ad_jobs.archive.sources import read_source
from ad_jobs.cli.show_auto import auto_outlook_text
from ad_jobs.fitting.split import HELD_OUT_SHARE, held_out_anomalous
from ad_jobs.images.policy import Limits, PixelPolicy
from ad_jobs.images.tiling import Tiling
from ad_jobs.scanning import chapters, run_state
from ad_jobs.scanning.intent import Intent, resolve
from ad_jobs.specs import AUTO, FitSpec, ScanSpec
from cluster import autoscaling
from cluster.counting import counted
from cluster.division import Node, divide_for_scan
from cluster.session import session

# The most that any format took for one pixel while it was decoded and resized, beside its file, measured: 16-bit RGBA
# under a policy of one channel. Grey DICOM takes half of that.
DECODE_BYTES_A_PIXEL = 45
# At its handing over to the decoder's process: whole and in the message, on both sides.
COPIES_OF_OBJECT = 4
# At their handing back: whole on both sides, and in the message.
COPIES_OF_FRAMES = 3
# Frames travel and wait as uint16.
BYTES_A_VALUE = 2


def scan_outlook(spec: ScanSpec) -> dict[str, Any]:
    """What `scan` with the same specification would begin with, as plain values.

    Raises:
        UsageError: as `scan`.
        ClusterError: no cluster answers, or it has no CPU.
    """
    # Ray Data's import is slow.
    from ad_jobs.scanning.pipeline import block_rows, part_rows, refuse_amp_without_gpu

    with tempfile.TemporaryDirectory(prefix="retroscan-dry-run-") as scratch:
        intent = resolve(spec, index_to=scratch)
        finished = run_state.look(intent) is not None
        left = [0] if finished else objects_left(intent)
    with session(spec.address, num_cpus=spec.num_cpus, grow=False) as has:
        if spec.amp:
            refuse_amp_without_gpu(has)
        division = divide_for_scan(has.nodes, spec.batch_size, sum(left), intent.score_ms, intent.object_bytes)
    return {
        "run_id": intent.run_id,
        "cluster": _cluster(has.nodes),
        "actors": division.actors,
        "actor_cpus": division.actor_cpus,
        "actor_gpus": division.actor_gpus,
        "fetch_tasks": division.fetch_tasks,
        "fetch_cpus": division.fetch_cpus,
        "write_cpus": division.write_cpus,
        "batch_size": division.batch_size,
        "block_rows": block_rows(max(left, default=0), division),
        "part_rows": part_rows(intent, division),
        "chapters": intent.chapters,
        "chapters_left": sum(count > 0 for count in left),
        "listed": intent.manifest.objects,
        "not_selected": intent.not_selected,
        "undecided": intent.undecided,
        "already": intent.already,
        "since": None if intent.parent is None else intent.parent.run_id,
        "objects": intent.objects,
        "objects_left": sum(left),
        "fetch_task_bytes": fetch_task_bytes(intent.limits, intent.policies),
    }


def objects_left(intent: Intent) -> list[int]:
    """How many objects of each chapter are left to do, 0 for a committed one."""
    committed = chapters.committed(intent.checkpoint, intent.spec.out)
    left = []
    for number in range(intent.chapters):
        if number in committed:
            left.append(0)
            continue
        objects = pa.table({"object_id": intent.ids(number)})
        left.append(chapters.left_to_do(intent.spec.out, intent.run_id, number, objects, mend=False).objects.num_rows)
    return left


def fetch_task_bytes(limits: Limits, policies: Sequence[PixelPolicy]) -> int:
    """The most memory that one fetch-and-decode task and its decoder take, at an object that is at every limit."""
    object_bytes = COPIES_OF_OBJECT * limits.max_bytes
    decoding = DECODE_BYTES_A_PIXEL * limits.max_pixels
    frame_px = [_most_px(policy, limits) for policy in policies]
    input_px = min(limits.max_frames * sum(frame_px), limits.max_input_pixels)
    values = sum(px * policy.channels for px, policy in zip(frame_px, policies, strict=True)) / sum(frame_px)
    frames = round(COPIES_OF_FRAMES * BYTES_A_VALUE * input_px * values)
    return FETCH_AHEAD_BYTES + object_bytes + min(decoding, limits.max_memory_bytes) + frames


def _most_px(policy: PixelPolicy, limits: Limits) -> int:
    """Of a frame at the input's size, or as it is cut."""
    tile = policy.height_px * policy.width_px
    if policy.tiles is None:
        return tile
    return max(tile, limits.max_pixels) if policy.tiles.size_px is None else prod(policy.tiles.size_px)


def fit_outlook(spec: FitSpec) -> dict[str, Any]:
    """What `fit` with the same specification would begin with, as plain values; every object is taken as one frame.

    How many tiles images of their own resolution have, and what they take decoded, is not known before they are read:
    `steps_an_epoch` and `decoded_bytes` are None.

    Raises:
        UsageError: as `fit`.
        ClusterError: no cluster answers, or it has no room for the workers.
    """
    if spec.detector == AUTO:
        return auto_outlook(spec)
    # Ray Train's import is slow.
    from ad_jobs.fitting.intent import resolve
    from ad_jobs.fitting.worker import divided

    intent = resolve(spec)
    batch_size, policy = intent.config.batch_size, intent.policy
    normal = len(read_source(spec.normal))
    anomalous = len(read_source(spec.anomalous)) if spec.anomalous else 0
    known = known_frame(policy)
    with session(spec.address, grow=False) as has:
        division, room = divided(spec, has.nodes)
    return {
        "cluster": _cluster(has.nodes),
        "workers": division.workers,
        "worker_cpus": division.cpus,
        "worker_gpus": division.gpus,
        "worker_threads": division.threads,
        "batch_size": batch_size,
        "steps_an_epoch": None if known is None else steps_an_epoch(normal, anomalous, batch_size, known.tiles),
        "normal": normal,
        "anomalous": anomalous,
        "decoded_bytes": None
        if known is None
        else {
            kind: (normal + anomalous) * BYTES_A_VALUE * channels * known.pixels
            for kind, channels in (("grey", 1), ("colour", policy.channels))
        },
        "room_bytes": room,
    }


def auto_outlook(spec: FitSpec) -> dict[str, Any]:
    """What `fit --detector auto` would try, as plain values, if each took what it is expected to on this machine."""
    # Torch stands behind it.
    from ad_jobs.fitting.candidates import DEFAULT_BUDGET_S, candidates, outlook

    normal = len(read_source(spec.normal))
    budget_s = spec.budget or DEFAULT_BUDGET_S
    return {
        "normal": normal,
        "budget_s": budget_s,
        "candidates": [
            {
                "detector": one.kind,
                "height_px": one.intent.policy.height_px,
                "width_px": one.intent.policy.width_px,
                "expected_s": round(one.expected_s, 1),
                "starts": starts,
            }
            for one, starts in outlook(candidates(spec, normal), budget_s)
        ],
    }


class _Frame(NamedTuple):
    """The pixels of a frame as it is fitted on, and the tiles it is cut into."""

    pixels: int
    tiles: int


def known_frame(policy: PixelPolicy) -> _Frame | None:
    """As every frame is, whatever its own size; None where that counts."""
    if policy.tiles is None:
        return _Frame(prod(policy.size_px), 1)
    if policy.tiles.size_px is None:
        return None
    tiling = Tiling(*policy.size_px, policy.tiles.overlap_px)
    return _Frame(prod(policy.tiles.size_px), tiling.number(*policy.tiles.size_px))


def steps_an_epoch(normal: int, anomalous: int, batch_size: int, tiles: int = 1) -> int:
    """Steps of one epoch over the training images, each of so many tiles, however many workers take them.

    The last batch may be smaller.

    Each normal image is taken to be a group of its own; with anomalous ones, an epoch is as long as the larger class.
    """
    held_out = max(1, round(HELD_OUT_SHARE * normal))
    images = tiles * max(normal - held_out, 0)
    if anomalous:
        images = max(images, anomalous - held_out_anomalous(anomalous))
    return -(-images // batch_size)


def _cluster(nodes: Sequence[Node]) -> dict[str, Any]:
    return {
        "nodes": len(nodes),
        "cpus": sum(node.cpus for node in nodes),
        "gpus": sum(node.gpus for node in nodes),
        "memory_bytes": sum(node.memory for node in nodes),
        "object_store_bytes": sum(node.object_store for node in nodes),
        "shapes": [node._asdict() for node in nodes],
        "grows_to": autoscaling.asked()._asdict(),
    }


# --- As text


def scan_text(found: dict[str, Any]) -> str:
    """What `scan_outlook` found, for a reader."""
    done = found["objects"] - found["objects_left"]
    return _lines(
        ("cluster", _cluster_text(found["cluster"])),
        ("actors", f"{found['actors']} of {_machine(found['actor_cpus'], found['actor_gpus'])}"),
        (
            "tasks",
            f"{found['fetch_tasks']} to fetch and decode fit beside them, of "
            f"{counted(found['fetch_cpus'], 'CPU', spec='g')}; to write, of {found['write_cpus']:g}",
        ),
        (
            "sizes",
            f"batches of up to {counted(found['batch_size'], 'frame')}, blocks of "
            f"{counted(found['block_rows'], 'object')}, parts of {found['part_rows']:,}",
        ),
        ("memory", f"a fetch task takes {_size(found['fetch_task_bytes'])} at most, at an object at every limit"),
        (
            "manifest",
            f"{found['listed']:,} = {found['objects']:,} selected + "
            + (f"{found['already']:,} already in {found['since']} + " if found["since"] else "")
            + f"{found['not_selected']:,} not selected + {found['undecided']:,} undecided (--where is NULL)",
        ),
        ("objects", f"{found['objects']:,}: {done:,} done, {found['objects_left']:,} left"),
        ("chapters", f"{found['chapters']:,}: {found['chapters_left']:,} left"),
        ("run", found["run_id"]),
    )


def fit_text(found: dict[str, Any]) -> str:
    """What `fit_outlook` found, for a reader."""
    if "candidates" in found:
        return auto_outlook_text(found)
    room = f"{_size(found['room_bytes'])} of it may stay so"
    if (decoded := found["decoded_bytes"]) is None:
        steps, memory = "as many as images have tiles", f"images of their own sizes, decoded; {room}"
    else:
        steps = f"{found['steps_an_epoch']:,}"
        memory = f"{_size(decoded['grey'])} decoded ({_size(decoded['colour'])} in colour), {room}"
        if decoded["grey"] > found["room_bytes"]:
            memory += ": the rest is decoded again in every epoch"
    return _lines(
        ("cluster", _cluster_text(found["cluster"])),
        (
            "workers",
            f"{found['workers']} of {_machine(found['worker_cpus'], found['worker_gpus'])} and "
            f"{counted(found['worker_threads'], 'thread')}",
        ),
        ("steps", f"{steps} an epoch, of {counted(found['batch_size'], 'image')} over all workers"),
        ("images", f"{found['normal']:,} normal, {found['anomalous']:,} anomalous, one frame an object"),
        ("memory", memory),
    )


def _lines(*rows: tuple[str, str]) -> str:
    return "\n".join(f"{name:<10}{text}" for name, text in rows)


def _cluster_text(cluster: dict[str, Any]) -> str:
    later = autoscaling.Size(**cluster["grows_to"])
    return (
        f"{counted(cluster['nodes'], 'node')}: {_machine(cluster['cpus'], cluster['gpus'])}, "
        f"{_size(cluster['memory_bytes'])} for workers, {_size(cluster['object_store_bytes'])} object store"
        + (
            f"; without --dry-run, {_machine(later.cpus, later.gpus)} are waited for"
            if later.cpus > cluster["cpus"] or later.gpus > cluster["gpus"]
            else ""
        )
    )


def _machine(cpus: float, gpus: float) -> str:
    return f"{counted(cpus, 'CPU', spec='g')} and {counted(gpus, 'GPU', spec='g')}"


def _size(count: int) -> str:
    """Bytes in MiB below a GiB, in GiB above."""
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.1f} MiB"
