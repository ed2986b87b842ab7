"""What two runs were made with: which of their models are compared, and where their records differ."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from ad_jobs.errors import UsageError
from ad_jobs.results.run import ModelRef, RunRecord

# Of a request: what decides rows, or which of their heatmaps are kept.
_OPTIONS = ("where", "accept", "since", "retry", "limits", "heatmaps", "identifiers", "amp")
_OF_A_MODEL = ("kind", "weights_sha256", "detector_sha256", "calibration_sha256", "threshold")
_SCALE = ("heatmap_low", "heatmap_high", "heatmap_anchor", "policy")


class Pair(NamedTuple):
    """A model of each run, which are compared: the same one, or the only one of each."""

    a: ModelRef
    b: ModelRef

    @property
    def same(self) -> bool:
        """Whether it is one model: then equal images have equal scores."""
        return self.a.model_id == self.b.model_id

    @property
    def name(self) -> str:
        """How the pair is called."""
        return self.a.model_id if self.same else f"{self.a.model_id} and {self.b.model_id}"


class Setting(NamedTuple):
    """Something that two runs were made with differently; None where a run has no such thing."""

    name: str
    a: Any
    b: Any


def pairs(a: RunRecord, b: RunRecord) -> list[Pair]:
    """The models of both, in the order of A; or the one model of each, if they are different ones.

    Raises:
        UsageError: the runs have several models, and none in common; or one run's URIs are hashed.
    """
    hashed = [record.config.get("identifiers") == "hashed" for record in (a, b)]
    if hashed[0] != hashed[1]:
        raise UsageError(
            "Objects of two runs are told by their URIs: both are hashed, or neither.",
            f"{a.run_id}, {'hashed' if hashed[0] else 'plain'}, and {b.run_id}, {'hashed' if hashed[1] else 'plain'}",
            "Compare runs with the same --identifiers.",
        )
    of_b = {model.model_id: model for model in b.models}
    found = [Pair(model, of_b[model.model_id]) for model in a.models if model.model_id in of_b]
    if not found and len(a.models) == len(b.models) == 1:
        return [Pair(a.models[0], b.models[0])]
    if not found:
        raise UsageError(
            "Runs are compared under the models of both, or under the only one of each.",
            " and ".join(", ".join(model.model_id for model in record.models) for record in (a, b)),
            "Compare runs with a model in common.",
        )
    return found


def differing(a: RunRecord, b: RunRecord, compared: list[Pair]) -> list[Setting]:
    """Where the records differ in what may move a row, models first, and in where it ran."""
    of_a, of_b = ({model.model_id for model in record.models} for record in (a, b))
    found = [Setting("models", sorted(of_a), sorted(of_b))]
    for pair in compared:
        then, now = (_flat(_described(model)) for model in pair)
        prefix = f"model {pair.name}: "
        found += [Setting(prefix + name, then.get(name), now.get(name)) for name in dict.fromkeys([*then, *now])]
    then, now = (_flat(_of_run(record)) for record in (a, b))
    found += [Setting(name, then.get(name), now.get(name)) for name in dict.fromkeys([*then, *now])]
    return [setting for setting in found if setting.a != setting.b]


def _described(model: ModelRef) -> dict[str, Any]:
    return {name: getattr(model, name) for name in (*_OF_A_MODEL, *_SCALE)}


def _of_run(record: RunRecord) -> dict[str, Any]:
    return {
        "source": record.source,
        "manifest": record.manifest.digest,
        # As of runs of versions without the option.
        **{name: record.config.get(name) or None for name in _OPTIONS},
        "versions": record.versions,
        "machine": {name: value for name, value in record.machine.items() if name != "memory_bytes"},
    }


def _flat(values: Mapping[str, Any]) -> dict[str, Any]:
    return dict(_leaves("", values))


def _leaves(prefix: str, values: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _leaves(f"{prefix}{name}.", value)
        else:
            yield f"{prefix}{name}", value
