"""Which normal images are held out of a fit: whole groups, drawn by seed."""

from __future__ import annotations

import logging

import numpy as np

from ad_jobs.errors import JobError

log = logging.getLogger("retroscan.fit")

HELD_OUT_SHARE = 0.1


def split_by_group(
    groups: list[str], seed: int, share: float = HELD_OUT_SHARE
) -> tuple[list[int], list[int]]:
    """Positions to fit on and positions held out: whole groups, drawn by seed, until `share` of the images is reached.

    A single group is split by image, with a warning: its two parts are not independent.
    """
    if len(groups) < 2:
        raise JobError(
            f"A fit needs at least two normal images, one of them to hold out. Got: {len(groups)}."
        )
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
    for number in order[:-1]:  # at least one group stays to fit on
        if len(held) >= wanted:
            break
        held.update(members[names[number]])
    return [p for p in range(len(groups)) if p not in held], sorted(held)
