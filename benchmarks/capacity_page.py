"""The page that benchmarks.capacity writes: costs, assumptions, what was checked, and what is predicted."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ad_jobs.archive.fetching import FETCH_THREADS
from ad_jobs.specs import CHAPTER_OBJECTS
from benchmarks.capacity_check import CASES, key, predicted
from benchmarks.capacity_inputs import assumptions, costs_of, costs_of_run, from_s3, types_of
from cluster.capacity import hours, predict, price_per_hour


def page(config: dict[str, Any], measured: dict[str, Any], checked: dict[str, Any], runs: list[str]) -> list[str]:
    """The lines of capacity.md: costs and checks as measured, what is assumed, and what is predicted."""
    assumed = config["assumptions"]
    lines = [
        "# What a cluster achieves",
        "",
        "`python -m benchmarks.capacity`: the model of `cluster/capacity.py`, which divides a cluster as a "
        f"scan does, on the costs of `benchmarks/stage_costs.py`, measured on {measured['machine']['cpu']}, "
        f"{measured['machine']['cores']} cores, "
        f"torch {measured['versions']['torch']}, clocks with one core at work, CPU with all of them.",
        "",
        "## Costs of an image, ms",
        "",
        *_table(
            ("objects", "KiB", "GET", "GET, CPU", "decode", "decode, CPU"),
            [
                (
                    name,
                    f"{one['bytes'] / 1024:.0f}",
                    *(f"{one[stage][unit]:.2f}" for stage in ("fetch", "decode") for unit in ("ms", "cpu_ms")),
                )
                for name, one in measured["objects"].items()
            ],
        ),
        "",
        *_table(
            ("detector", "score", "score, CPU", "write, CPU"),
            [
                (name, f"{one['score']['ms']:.2f}", f"{one['score']['cpu_ms']:.2f}", f"{one['write_cpu_ms']:.2f}")
                for name, one in measured["detectors"].items()
            ],
        ),
        "",
        "## Assumed",
        "",
        *(f"* {text}" for text in _assumed_texts(assumed, measured)),
    ]
    if checked:
        lines += ["", "## Checked on this machine", "", *_check_lines(checked, measured, config)]
    lines += ["", "## Predicted, objects in S3", "", *_prediction_lines(config, measured, runs)]
    return lines


def _assumed_texts(assumed: dict[str, Any], measured: dict[str, Any]) -> list[str]:
    return [
        f"A GET takes {assumed['latency_ms']} ms, of which {FETCH_THREADS} are under way in every fetch task, and "
        f"{measured['s3']['cpu_ms']:.1f} ms of CPU (measured). Stores answer as fast as they are asked, up to the "
        "nodes' network.",
        f"Ray takes {assumed['ray_cpu_ms']} ms of CPU for each image, {assumed['ray_cores']} of a core on every node, "
        f"{assumed['task_ms']} ms between a fetch task and the next, {assumed['start_s']} s until the first image is "
        f"scored, and {assumed['chapter_s']} s between chapters of {CHAPTER_OBJECTS:,} objects.",
        "A cluster's core is one of the measured machine (`speed` of a node says otherwise), an object is one frame, "
        "nothing fails.",
        f"A GPU scores an image in {assumed['gpu_ms']} ms and {assumed['gpu_cpu_ms']} ms of CPU: a supposition, none "
        "was at hand.",
        "Prices are those of the config: round figures, no offer.",
    ]


def _check_lines(found: dict[str, Any], measured: dict[str, Any], config: dict[str, Any]) -> Iterator[str]:
    rows = []
    for case in CASES:
        one = found.get(key(case))
        if one is None:
            continue
        said = predicted(case, measured, config["assumptions"])
        rows.append(
            (
                case.name,
                case.detector,
                f"{case.form} 512",
                case.images,
                f"{said.images_per_s:.1f}",
                f"{one['images_per_s']:.1f}",
                f"{said.images_per_s / one['images_per_s'] - 1:+.0%}",
                said.bottleneck,
                f"{one['first_s']:.0f}",
                "–" if one["pause_s"] is None else f"{one['pause_s']:.1f}",
                f"{one['seconds']:.0f}",
            )
        )
    yield (
        "Steady images per second, of local files, by the times at which images were scored; logical nodes share this "
        "machine's cores."
    )
    yield ""
    yield from _table(
        (
            "on",
            "detector",
            "objects",
            "images",
            "predicted images/s",
            "measured",
            "off",
            "bottleneck",
            "first image after s",
            "pause between chapters s",
            "seconds in all",
        ),
        rows,
    )


def _prediction_lines(config: dict[str, Any], measured: dict[str, Any], runs: list[str]) -> Iterator[str]:
    given = config["assumptions"]
    assumed = assumptions(given, latency_ms=given["latency_ms"])
    archives = [
        (
            f"{one['detector']}, {one['object']}",
            from_s3(costs_of(measured, one["detector"], one["object"], given), measured),
        )
        for one in config["archives"]
    ]
    archives += [(f"run {run}", costs_of_run(run, measured)) for run in runs]
    rows = []
    for name, costs in archives:
        for cluster, members in config["clusters"].items():
            types = types_of(members)
            if costs.gpu_score is None and any(one.node.gpus for one in types):
                continue
            said = predict(costs, types, assumed)
            figures = []
            for objects in config["objects"]:
                long = hours(objects, said.images_per_s, assumed)
                figures.append(f"{long:,.1f} h, {long * price_per_hour(types):,.0f}")
            rows.append((name, cluster, f"{said.images_per_s:,.0f}", said.bottleneck, *figures))
    heads = [f"{objects / 1e6:g} M: hours, price" for objects in config["objects"]]
    yield from _table(("detector and objects", "cluster", "images/s", "bottleneck", *heads), rows)


def _table(head: tuple[str, ...], rows: list[tuple[Any, ...]]) -> Iterator[str]:
    for row in (head, ("---",) * len(head), *rows):
        yield f"| {' | '.join(map(str, row))} |"
