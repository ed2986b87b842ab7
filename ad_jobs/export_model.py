"""`retroscan export-model`: a model's network as a file of ONNX, for programs that have neither torch nor retroscan."""

from __future__ import annotations

import json
from typing import Any

from ad_jobs.errors import UsageError
from ad_jobs.images.model_input import FULL_SCALE
from ad_jobs.scoring.model_store import FittedModel, calibration_of, open_fitted
from ad_jobs.specs import ExportModelSpec, takes
from ad_jobs.values import tiles_text
from cluster import storage
from models.errors import GraphError
from models.graph import INPUT, OUTPUTS, to_onnx

# What is said of the input beside its shape.
CONVENTION = (
    "float32 [batch, channels, height, width], 0 black and 1 white: the pixels after the policy, divided by "
    f"{FULL_SCALE} where they are uint16; grey repeated to all channels. What lies outside of [0, 1] is not refused."
)


@takes(ExportModelSpec)
def export_model(spec: ExportModelSpec) -> dict[str, Any]:
    """Write the graph to `out`, a local file or s3://; what its metadata say, with `out` and its `bytes`.

    Input `images` float32 [batch, channels, height, width] in [0, 1], the batch of any size; outputs `score` float32
    [batch] and `heatmap` float32 [batch, height, width], raw as the scan's.

    Raises:
        UsageError: no model there, or a damaged one; a kind that is no single graph; a folder as `out`.
    """
    model, detector = open_fitted(spec.model)
    try:
        graph = to_onnx(detector)
    except GraphError as error:
        raise UsageError(error.rule, f"{spec.model}, {error.value}", error.remedy) from error
    said = metadata(model)
    content = _with(graph, said)
    try:
        storage.write_bytes(spec.out, content)
    except storage.StorageError as error:
        raise UsageError("--out must be a file that this user may write.", str(error), "Name another.") from error
    return {"out": spec.out, "bytes": len(content), **said}


def metadata(model: FittedModel) -> dict[str, str]:
    """What the file says of itself: which model it is of, what its input and its outputs are, and its threshold."""
    height, width = model.policy.height_px, model.policy.width_px
    calibration = calibration_of(model)
    said = {
        "model_id": model.model_id,
        "kind": model.kind,
        "size_px": f"{height}x{width}",
        INPUT: CONVENTION,
        OUTPUTS[0]: "float32 [batch], larger is more abnormal",
        OUTPUTS[1]: "float32 [batch, height, width]; heatmap_low is cold, heatmap_anchor half hot",
        "policy": json.dumps(model.policy.model_dump(mode="json"), sort_keys=True),
    }
    if (cut := tiles_text(model.policy)) is not None:
        said["tiles"] = f"The graph scores one tile. Tiles are {cut}, and stitched by retroscan."
    if calibration is None:
        return said
    numbers = {name: getattr(calibration, name) for name in ("threshold", "heatmap_low", "heatmap_high")}
    numbers["heatmap_anchor"] = calibration.anchor
    return said | {name: repr(value) for name, value in numbers.items()}


def _with(graph: bytes, said: dict[str, str]) -> bytes:
    import onnx

    model = onnx.load_from_string(graph)
    model.producer_name = "retroscan"
    onnx.helper.set_model_props(model, said)
    return bytes(model.SerializeToString())
