"""Models of format 1, as this version reads them: options that are gone are fixed at what they were then by default.

A model's record is never changed, so that its id stays. What is read here is its kind, its configuration, and the names
in its weights.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from models import registry
from models.errors import ArtifactError

OLDER_FORMAT = 1


@dataclass(frozen=True)
class Reading:
    """A kind of this version that reads models of an older one."""

    kind: str
    # Options whose other values are not read: what is fixed now, or tells this reading from another.
    fixed: Mapping[str, Any] = field(default_factory=dict)
    # Options that are not looked at: they shaped the fit, and do nothing in what came of it.
    ignored: tuple[str, ...] = ()
    # Patterns of names in the weights, and what stands for them now; a name that becomes empty is dropped.
    names: tuple[tuple[str, str], ...] = ()

    def differing(self, options: Mapping[str, Any]) -> list[str]:
        """The options of an older model that this reading does not cover."""
        fields = registry.entry(self.kind).config_class().model_fields
        return [
            option
            for option, value in options.items()
            if (value != self.fixed[option] if option in self.fixed else option not in (*fields, *self.ignored))
        ]

    def options(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """The options of an older model that are still options."""
        fields = registry.entry(self.kind).config_class().model_fields
        return {option: value for option, value in options.items() if option in fields and option not in self.ignored}

    def weights(self, state: Mapping[str, Any]) -> dict[str, Any]:
        """The weights of an older model under the names of this version."""
        found = {}
        for name, tensor in state.items():
            for pattern, now in self.names:
                name = re.sub(pattern, now, name)
            if name:
                found[name] = tensor
        return found


# Of SSM, and of the auto-encoder that was an option of it, no models are read: both score in other ways now.
READINGS: dict[str, tuple[Reading, ...]] = {
    "cyclegan": (
        Reading("cyclegan", {"blur": 2.0, "score": "sse"}, ("augment", "zoom", "shift", "contrast", "decay_start")),
    ),
    "mkd": (
        Reading(
            "mkd",
            {
                "cloner": "compact",
                "cloner_width": 16,
                "bn_affine": True,
                "map_scale": "global",
                "detach_source": False,
                "blur": 4.0,
                "opening": True,
            },
        ),
    ),
    # The method's alignment has other bounds now, and its models are not read.
    "fyd": (
        Reading(
            "padim",
            {"align_image": False, "align_stages": False, "contrast": False, "flip": False},
            (
                *("epochs", "lr", "align_epochs", "align_lr", "image_family", "stage_family", "image_angle_deg"),
                *("stn_hidden", "width", "cov_reg", "normalise", "selection", "unwarp"),
            ),
            (
                (r"^trunk\.", "backbone."),
                (r"^dims_(\d+)$", r"gaussians.\1.dims"),
                (r"^(bank|scale)s\.(\d+)\.", r"gaussians.\2.\1."),
                ("^turned_mean$", ""),
            ),
        ),
    ),
}


def reading(kind: str, options: Mapping[str, Any], where: object) -> Reading:
    """How a model of format 1, in `where`, is read.

    Raises:
        ArtifactError: it has an option that this version does not have at that value.
    """
    readings = READINGS.get(kind, (Reading(kind),))
    for one in readings:
        if not one.differing(options):
            return one
    closest = min(readings, key=lambda one: len(one.differing(options)))
    option = closest.differing(options)[0]
    raise ArtifactError(
        f"Of {kind} models of format {OLDER_FORMAT} this retroscan reads {_known(option, readings)}.",
        f"{option}={options[option]} in {where}",
        "Scan it with the version that wrote it (detector.json, key versions), or fit again with "
        f"`--detector {closest.kind}`.",
    )


def _known(option: str, readings: Iterable[Reading]) -> str:
    values = [repr(one.fixed[option]) for one in readings if option in one.fixed]
    return f"those with {option}={' or '.join(dict.fromkeys(values))}" if values else f"none with {option}"
