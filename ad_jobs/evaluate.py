"""evaluate: a finished run against labels, into RUN/evaluation.json."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd
from PIL import Image, UnidentifiedImageError

from ad_jobs.errors import JobError, UsageError
from ad_jobs.evaluation import image_metrics, ranking
from ad_jobs.evaluation import labels as labels_module
from ad_jobs.evaluation.image_metrics import Estimate
from ad_jobs.evaluation.labels import Labels
from ad_jobs.evaluation.pixel_metrics import PIXEL_METRICS, REPLICATES, PixelEvaluation
from ad_jobs.images.geometry import Geometry
from ad_jobs.results.heatmaps import Reference, decode_png, parse_reference
from ad_jobs.results.read import read_scores
from ad_jobs.results.run import RunRecord, read_record
from cluster import storage

EVALUATION_FILE = "evaluation.json"
_COLUMNS = ["uri", "frame", "status", "score", "threshold", "flagged", "heatmap", "model_id", "run_id"]
_HISTOGRAM_BINS = 40

# Neighbouring heatmaps of a shard are read together, and what lies between them is thrown away.
_READ_BYTES = 8 << 20
_GAP_BYTES = 64 << 10


class _Pixels(NamedTuple):
    """One heatmap to be judged: where it lies, what its bootstrap weight hangs on, its mask if abnormal."""

    reference: Reference
    group: str
    mask: str | None


def evaluate(
    run: str, labels: str, *, seed: int = 0, bootstrap: int = 1000, allow_unfinished: bool = False
) -> dict[str, Any]:
    """What the run is worth on labelled images; also written to RUN/evaluation.json.

    At the top level stand the first model's counts and metrics, each metric as {"value", "low", "high"};
    `models` holds the same for the other models by model_id. Pixel metrics need masks and a heatmap of every
    labelled image; without they are null and `pixel_note` says why.

    Args:
        run: folder or s3:// URI of the run.
        labels: CSV with image, anomalous and, if known, mask, frame, group.
        seed: of the bootstrap.
        bootstrap: replicates; pixel metrics take at most 200 of them; 0 for no intervals.
        allow_unfinished: judge what an unfinished run has so far.

    Raises:
        UsageError: not a finished run, a labels file that cannot be used, or labels of other images.
        JobError: a heatmap is damaged.
    """
    if bootstrap < 0:
        raise UsageError("The number of bootstrap replicates must not be negative.", bootstrap, "0 turns it off.")
    run_uri = storage.absolute(run)
    read = labels_module.read_labels(labels)
    record = read_record(run_uri, allow_unfinished)
    rows = read_scores(run_uri, columns=_COLUMNS, allow_unfinished=allow_unfinished)
    results = {
        model_id: _judge(run_uri, read, rows[rows["model_id"] == model_id], threshold, seed, bootstrap)
        for model_id, threshold in _models(record, rows)
    }
    first, *others = results
    evaluation: dict[str, Any] = {
        "version": 1,
        "run_id": record.run_id if record else str(rows["run_id"].iloc[0]),
        "model_id": first,
        "labels": {"uri": read.uri, "sha256": read.sha256, "rows": len(read.table)},
        "evaluated_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "unfinished": record is None,
        "seed": seed,
        "bootstrap": bootstrap,
        "resampled_by": "group" if read.table["group"].notna().any() else "image",
        **results[first],
        "models": {model_id: results[model_id] for model_id in others},
    }
    text = json.dumps(evaluation, indent=2, allow_nan=False) + "\n"
    storage.write_bytes(storage.join(run_uri, EVALUATION_FILE), text.encode())
    return evaluation


def _models(record: RunRecord | None, rows: pd.DataFrame) -> list[tuple[str, float]]:
    """Model ids and thresholds, in the order of the run's command line where it is known."""
    if record is not None:
        return [(model.model_id, model.threshold) for model in record.models]
    scored = rows.dropna(subset=["threshold"]).drop_duplicates("model_id")
    if scored.empty:
        raise JobError("The run has no scored image yet.", "Wait for the scan, or look at its error codes.")
    return [(str(m), float(t)) for m, t in zip(scored["model_id"], scored["threshold"], strict=True)]


def _judge(
    run_uri: str, labels: Labels, rows: pd.DataFrame, threshold: float, seed: int, bootstrap: int
) -> dict[str, Any]:
    joined = labels_module.join(labels, rows)
    status = joined.table["status"]
    judged = joined.table[status == "scored"].reset_index(drop=True)
    anomalous = judged["anomalous"].to_numpy(dtype=bool)
    scores = judged["score"].to_numpy(dtype=np.float64)
    groups = _groups(judged)
    pixels, note, pixel_roc = _pixel_metrics(run_uri, judged, groups, seed, bootstrap)
    return {
        "n_labelled": len(joined.table),
        "n_normal": int((~anomalous).sum()),
        "n_anomalous": int(anomalous.sum()),
        "n_failed": int((status == "failed").sum()),
        "n_skipped": int((status == "skipped").sum()),
        "n_missing": int((status == "missing").sum()),
        "n_unlabelled": joined.unlabelled,
        **image_metrics.image_metrics(scores, anomalous, groups, seed=seed, bootstrap=bootstrap),
        **pixels,
        "pixel_note": note,
        "at_threshold": _at_threshold(threshold, judged["flagged"].to_numpy(dtype=bool), anomalous),
        "curves": _curves(scores, anomalous) | ({"pixel_roc": pixel_roc} if pixel_roc else {}),
    }


def _groups(judged: pd.DataFrame) -> list[str]:
    """What each image is drawn with: its group, else its object: frames of one object belong together."""
    return [
        f"image {uri}" if group is None or pd.isna(group) else f"group {group}"
        for uri, group in zip(judged["uri"], judged["group"], strict=True)
    ]


def _at_threshold(threshold: float, flagged: npt.NDArray[np.bool_], anomalous: npt.NDArray[np.bool_]) -> dict[str, Any]:
    """The confusion counts at the run's own threshold, and the two error rates with exact intervals."""
    counts = {
        "true_positive": int((flagged & anomalous).sum()),
        "false_positive": int((flagged & ~anomalous).sum()),
        "true_negative": int((~flagged & ~anomalous).sum()),
        "false_negative": int((~flagged & anomalous).sum()),
    }
    return {
        "threshold": threshold,
        "rule": "score > threshold",
        **counts,
        "fpr": image_metrics.rate(counts["false_positive"], int((~anomalous).sum())),
        "fnr": image_metrics.rate(counts["false_negative"], int(anomalous.sum())),
    }


def _curves(scores: npt.NDArray[np.float64], anomalous: npt.NDArray[np.bool_]) -> dict[str, Any]:
    """What the report draws: ROC, precision-recall (at most 200 points each) and scores by class."""
    if not scores.size:
        return {}
    edges = np.histogram_bin_edges(scores, bins=_HISTOGRAM_BINS)
    curves: dict[str, Any] = {
        "scores": {
            "edges": edges.tolist(),
            "normal": np.histogram(scores[~anomalous], edges)[0].tolist(),
            "anomalous": np.histogram(scores[anomalous], edges)[0].tolist(),
        }
    }
    pair = ranking.histograms(scores, anomalous)
    if pair.has_both():
        fpr, tpr = ranking.thin(*ranking.roc(pair))
        recall, precision = ranking.thin(*ranking.precision_recall(pair))
        curves["roc"] = {"fpr": fpr, "tpr": tpr}
        curves["pr"] = {"recall": recall, "precision": precision}
    return curves


def _pixel_metrics(
    run_uri: str, judged: pd.DataFrame, groups: list[str], seed: int, bootstrap: int
) -> tuple[dict[str, Estimate], str | None, dict[str, list[float]] | None]:
    """(metrics of PIXEL_METRICS, why they are null or what was left out, the pixel ROC)."""
    wanted, left_out, note = _wanted(judged, groups)
    if note is not None:
        return dict.fromkeys(PIXEL_METRICS, Estimate(value=None, low=None, high=None)), note, None
    evaluation = PixelEvaluation(seed=seed, replicates=min(REPLICATES, bootstrap))
    for pixels, values, geometry in _read_heatmaps(run_uri, wanted):
        # Padding is not part of the picture: nothing there can be right or wrong.
        top, left = geometry.top, geometry.left
        box = np.s_[top : top + geometry.height, left : left + geometry.width]
        mask = None if pixels.mask is None else geometry.mask_to_input(_read_mask(pixels.mask, geometry))
        evaluation.update(values[box], None if mask is None else mask[box], pixels.group)
    curve = evaluation.roc()
    roc = {"fpr": curve[0], "tpr": curve[1]} if curve else None
    note = f"{left_out} anomalous images without a mask are left out of the pixel metrics." if left_out else None
    return evaluation.result(), note, roc


def _wanted(judged: pd.DataFrame, groups: list[str]) -> tuple[list[_Pixels], int, str | None]:
    """(the heatmaps to judge, as they lie in storage; anomalous images left out; why there are none)."""
    marked = judged["mask"].notna() & judged["anomalous"]
    if not marked.any():
        return ([], 0, "No anomalous image has a mask (column mask of LABELS), so there is nothing to judge pixels by.")
    left_out = int((judged["anomalous"] & ~marked).sum())
    wanted, without_heatmap = [], 0
    for i in np.flatnonzero(marked | ~judged["anomalous"]):
        references = judged["heatmaps"].iloc[i]
        mask = judged["mask"].iloc[i] if marked.iloc[i] else None
        if mask is not None and len(references) > 1:
            raise UsageError(
                "A mask belongs to one frame.",
                f"{judged['uri'].iloc[i]} has {len(references)} frames",
                "Add the column frame to LABELS, one line a frame.",
            )
        if None in references:
            without_heatmap += 1
        else:
            wanted += [_Pixels(parse_reference(text), groups[i], mask) for text in references]
    if without_heatmap:
        return (
            [],
            left_out,
            f"The heatmaps of {without_heatmap} labelled images were not kept: scan with --heatmaps all.",
        )
    return sorted(wanted, key=lambda pixels: pixels.reference), left_out, None


def _read_heatmaps(run_uri: str, wanted: list[_Pixels]) -> Iterator[tuple[_Pixels, npt.NDArray[np.float32], Geometry]]:
    """Each heatmap [H, W] with its geometry, shard by shard in the order of offsets, by few large reads."""
    for batch in _batches(wanted):
        shard, start, _ = batch[0].reference
        end = max(pixels.reference.offset + pixels.reference.length for pixels in batch)
        uri = storage.join(run_uri, shard)
        try:
            data = storage.fetch_range(uri, start, end - start)
        except storage.NotFound as error:
            raise JobError(f"The heatmap shard {uri} is gone.", "Restore it, or scan again.") from error
        for pixels in batch:
            _, offset, length = pixels.reference
            yield pixels, *decode_png(data[offset - start : offset - start + length])


def _batches(wanted: list[_Pixels]) -> Iterator[list[_Pixels]]:
    batch: list[_Pixels] = []
    for pixels in wanted:
        if batch:
            first, last, this = batch[0].reference, batch[-1].reference, pixels.reference
            near = this.offset - (last.offset + last.length) <= _GAP_BYTES
            fits = this.offset + this.length - first.offset <= _READ_BYTES
            if this.shard != first.shard or not (near and fits):
                yield batch
                batch = []
        batch.append(pixels)
    if batch:
        yield batch


def _read_mask(uri: str, geometry: Geometry) -> npt.NDArray[np.bool_]:
    """A mask file as bool [rows, columns], True where any channel but transparency is not zero."""
    try:
        with Image.open(io.BytesIO(storage.read_bytes(uri))) as image:
            # A palette's index says nothing; its colour does.
            picture = image.convert("RGB") if image.mode in ("P", "PA") else image
            pixels = np.asarray(picture)
            if picture.mode in ("LA", "RGBA", "La", "RGBa"):
                pixels = pixels[..., :-1]
    except (storage.StorageError, UnidentifiedImageError, OSError, ValueError) as error:
        raise UsageError("A mask must be an image that can be read.", f"{uri}: {error}", "Check LABELS.") from error
    mask = np.asarray(pixels.any(axis=-1) if pixels.ndim == 3 else pixels != 0, dtype=bool)
    size = (geometry.rows, geometry.columns)
    if mask.shape != size:
        raise UsageError(
            "A mask must have the size of its image.",
            f"{uri} is {mask.shape[0]} x {mask.shape[1]}, the image {size[0]} x {size[1]} (rows x columns)",
            "Draw it on the image as stored.",
        )
    if not mask.any():
        raise UsageError(
            "The mask of an anomalous image must mark something.", uri, "Leave the mask empty if it is not known."
        )
    return mask
