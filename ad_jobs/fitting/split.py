"""Which images are held out of a fit (whole groups, drawn by seed), and how normal and anomalous ones are paired."""

from __future__ import annotations

import logging

import numpy as np
from numpy.typing import NDArray

from ad_jobs.errors import JobError

log = logging.getLogger("retroscan.fit")

HELD_OUT_SHARE = 0.1
# Of anomalous images (Cycle-GAN AD): a fifth and at least ten, as far as half of them allow.
ANOMALOUS_SHARE = 0.2
ANOMALOUS_HELD_OUT = 10


def split_by_group(
    groups: list[str], seed: int, share: float = HELD_OUT_SHARE, *, beyond: bool = True
) -> tuple[list[int], list[int]]:
    """Positions to fit on and positions held out: whole groups, drawn by seed, until `share` of the images is reached.

    Not `beyond`: groups that would go over the share are passed over, if another one is held out already.
    A single group is split by image, with a warning: its two parts are not independent.
    """
    if len(groups) < 2:
        raise JobError(f"A fit needs at least two normal images, one of them to hold out. Got: {len(groups)}.")
    members: dict[str, list[int]] = {}
    for position, group in enumerate(groups):
        members.setdefault(group, []).append(position)
    if len(members) == 1:
        log.warning(
            "All normal images belong to one group or study: the held-out ones are not independent of the rest."
        )
        members = {str(position): [position] for position in range(len(groups))}
    names = sorted(members)
    order = np.random.default_rng(seed).permutation(len(names))
    wanted = max(1, round(share * len(groups)))
    held: set[int] = set()
    # At least one group stays to fit on.
    for number in order[:-1]:
        if len(held) >= wanted:
            break
        if beyond or not held or len(held) + len(members[names[number]]) <= wanted:
            held.update(members[names[number]])
    return [p for p in range(len(groups)) if p not in held], sorted(held)


def split_anomalous(groups: list[str], seed: int) -> tuple[list[int], list[int]]:
    """Positions of anomalous images to fit on and held out for the threshold: whole groups, drawn by seed.

    Held out are a fifth of them and at least ten, but not more than half: only a single large group can be more.
    """
    count = len(groups)
    held_out = held_out_anomalous(count)
    if held_out == 0:
        raise JobError(
            f"A fit on anomalous images needs at least two, one of them to hold out. Got: {count}.",
            "Name more with --anomalous.",
        )
    return split_by_group(groups, seed, held_out / count, beyond=False)


def held_out_anomalous(count: int) -> int:
    """How many of so many anomalous images are held out, were each a group of its own."""
    return min(max(ANOMALOUS_HELD_OUT, round(ANOMALOUS_SHARE * count)), count // 2)


def pair(n_normal: int, n_anomalous: int, rng: np.random.Generator) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """One epoch of pairs: every image of the larger class once, those of the smaller in rounds.

    Each round is in a new order.

    Returns the positions of the normal and of the anomalous images, two arrays of max(n_normal, n_anomalous).
    """
    length = max(n_normal, n_anomalous)

    def rounds(count: int) -> NDArray[np.int64]:
        drawn = [rng.permutation(count) for _ in range(-(-length // count))]
        return np.concatenate(drawn)[:length]

    return rounds(n_normal), rounds(n_anomalous)
