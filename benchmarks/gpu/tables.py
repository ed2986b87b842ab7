"""The sections of the page of benchmarks.gpu.report, from the results of one stage each."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

Row = dict[str, Any]

# PaDiM at its defaults on the CPU, image AUROC and fit seconds with one thread (quality.md).
ON_CPU = {"br35h": (0.930, 85), "elpv": (0.962, 45)}
WAYS = {
    "float32, scorer": ("float32", "scorer"),
    "float32, bare": ("float32", "bare"),
    "AMP, scorer": ("amp", "scorer"),
    "AMP, bare": ("amp", "bare"),
}


def agreement(rows: list[Row]) -> Iterator[str]:
    """Scores of the CPU beside the card's."""
    yield "## CPU and card"
    yield ""
    yield (
        "Defaults, fitted for two epochs on the card, 64 images of br35h scored on both in float32. `within 1e-5` is "
        "of image scores, relative above 1 and absolute below, as `retroscan verify` asks; flags are by a threshold "
        "for 5 % false positives."
    )
    yield ""
    yield from _table(
        (
            "detector",
            "px",
            "scores",
            "largest difference",
            "relative",
            "within 1e-5",
            "flags that differ",
            "of heatmaps, share of the largest value",
        ),
        (
            (
                row["kind"],
                row["size_px"],
                "{:.4g} to {:.4g}".format(*row["scores"]),
                f"{row['absolute']:.1e}",
                f"{row['relative']:.1e}",
                "yes" if not row["beyond"] else f"no: {row['beyond']} of {row['images']} beyond",
                row["flags_differ"] if row["finite"] else "not finite",
                f"{row['heatmap_share']:.1e}",
            )
            for row in rows
        ),
    )


def padim(rows: list[Row]) -> Iterator[str]:
    """PaDiM's fit beside the CPU's."""
    yield "## PaDiM at its defaults"
    yield ""
    yield (
        "Beside it the CPU's figures of quality.md (one thread, means of three seeds). Half of br35h's anomalous "
        "images are judged here, drawn by seed: the AUROC compares, the AP less so."
    )
    yield ""
    yield from _table(
        ("data", "px", "fitted on", "fit s", "on the CPU", "AUROC", "on the CPU", "AP", "images", "scored in s"),
        (
            (
                row["data"],
                row["size_px"],
                row["fitted_on"],
                f"{row['fit_s']:.1f}",
                ON_CPU[row["data"]][1],
                f"{row['auroc']:.3f}",
                f"{ON_CPU[row['data']][0]:.3f}",
                f"{row['ap']:.3f}",
                row["test"],
                f"{row['score_s']:.1f}",
            )
            for row in rows
        ),
    )


def throughput(rows: list[Row]) -> Iterator[str]:
    """One table a size."""
    yield "## Images per second"
    yield ""
    yield (
        "`scorer` is the product's way from uint16 pixels in host memory to scores and heatmaps there, in one process; "
        "`bare` the detector alone, images and answers on the card. In brackets the peak of the card's memory in MiB."
    )
    found = {(row["kind"], row["size_px"], row["batch"], row["precision"], row["way"]): row for row in rows}
    for size_px in sorted({row["size_px"] for row in rows}):
        yield from ("", f"### {size_px} px", "")
        yield from _table(
            ("detector", "batch", *WAYS),
            (
                (kind, batch, *(_rate(found.get((kind, size_px, batch, *way))) for way in WAYS.values()))
                for kind, batch in dict.fromkeys((r["kind"], r["batch"]) for r in rows if r["size_px"] == size_px)
            ),
        )


def _rate(row: Row | None) -> str:
    if row is None:
        return "–"
    rate = f"{row['images_per_s']:,.0f}" if row["images_per_s"] >= 100 else f"{row['images_per_s']:.1f}"
    return rate if row["peak_mib"] is None else f"{rate} ({row['peak_mib']:,.0f})"


def compiled(rows: list[Row]) -> Iterator[str]:
    """What compiling costs and gains."""
    yield "## torch.compile"
    yield ""
    yield from _table(
        (
            "detector",
            "px",
            "batch",
            "compiled in s",
            "images/s, bare",
            "compiled",
            "gain",
            "largest relative difference",
        ),
        (
            (
                row["kind"],
                row["size_px"],
                row["batch"],
                f"{row['compile_s']:.0f}",
                f"{row['plain_images_per_s']:,.0f}",
                f"{row['compiled_images_per_s']:,.0f}",
                f"{row['compiled_images_per_s'] / row['plain_images_per_s'] - 1:+.0%}",
                f"{row['relative']:.1e}",
            )
            for row in rows
        ),
    )


def paper(rows: list[Row]) -> Iterator[str]:
    """The cut fits of the papers' scales."""
    yield "## The papers' scales, cut"
    yield ""
    yield (
        "`--preset paper` on br35h, one seed. Epochs were cut to the time there was, so these are no results of the "
        "papers; a whole fit's time is told from a short one's epochs. EfficientNet-Lite0 stands in for backbones "
        "whose weights were not at hand. The threshold is for 5 % false positives of held-out normals."
    )
    yield ""
    yield from _table(
        (
            "detector",
            "px",
            "epochs, of the paper's",
            "instead of",
            "fit s",
            "whole fit, s",
            "AUROC",
            "AP",
            "sensitivity",
            "false positives",
        ),
        (
            (
                row["kind"],
                row["size_px"],
                ", ".join(
                    f"{name} {count} of {row['paper_epochs'][name]}" + (" (cut)" * (count < row["paper_epochs"][name]))
                    for name, count in row["epochs"].items()
                ),
                ", ".join(f"{name} {value}" for name, value in row["changed"].items()) or "–",
                f"{row['fit_s']:.0f}",
                f"{row['whole_fit_s']:,.0f}",
                f"{row['auroc']:.3f}",
                f"{row['ap']:.3f}",
                f"{row['sensitivity']:.3f}",
                f"{row['fpr']:.3f}",
            )
            for row in rows
        ),
    )


def _table(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> Iterator[str]:
    for row in (head, ("---",) * len(head), *rows):
        yield f"| {' | '.join(map(str, row))} |"
