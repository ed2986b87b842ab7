"""A detector as one graph in ONNX: what an inference engine, or anyone without torch, runs in place of `score`.

It is torch's tracer that writes it: measured on PaDiM with Lite0 it takes 0.6 s of one CPU, where `torch.export` and
its translation take 17 s, and every process that scores would pay that.
"""

from __future__ import annotations

import tempfile
import warnings
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn

from models.detector import Detector
from models.errors import GraphError

OPSET = 18
# The graph's input, float32 [batch, channels, height, width] in [0, 1], and what it gives: float32 [batch] and [batch,
# height, width]. The batch is of any size.
INPUT = "images"
OUTPUTS = ("score", "heatmap")
# A file of ONNX is one protocol buffer, which ends at 2 GiB; graph and names have room in what is left.
MOST_BYTES = (2 << 30) - (64 << 20)


def to_onnx(detector: Detector) -> bytes:
    """The detector's `score`, a file of ONNX: what it is given is not checked there, as `InputSpec.check` does.

    Raises:
        GraphError: `score` is no single graph, or too large for one.
    """
    if not detector.one_graph:
        raise GraphError(
            "An ONNX graph is of a detector that takes the same steps for every image, and such as engines have: not "
            "fyd, ssm_residual, linear with patches, ssm that refines or scores as published, mkd with the gradient "
            "map.",
            f"{type(detector).__name__} of {', '.join(f'{k}={v}' for k, v in detector.config.model_dump().items())}",
            "Score with retroscan, or fit another.",
        )
    size = sum(tensor.nbytes for tensor in detector.state_dict().values())
    if size > MOST_BYTES:
        raise GraphError(
            f"A file of ONNX has up to {MOST_BYTES >> 20} MiB of weights.",
            f"{size >> 20} MiB",
            "Fit at a smaller --size, or with fewer dimensions (--set dims=64).",
        )
    spec = detector.spec
    # Two: a tracer that saw one image might take its number for a constant.
    images = torch.full((2, spec.channels, *spec.size_px), 0.5)
    images[:, :, ::2] = 0.25
    with tempfile.TemporaryDirectory(prefix="retroscan-onnx-") as scratch, warnings.catch_warnings():
        file = Path(scratch) / "graph.onnx"
        # Of shapes that become constants: those of an image are, and that of the batch none takes as a number, which
        # the contract suite shows by scoring other batches.
        warnings.simplefilter("ignore", torch.jit.TracerWarning)  # type: ignore[attr-defined]
        # That there is the other exporter.
        warnings.simplefilter("ignore", DeprecationWarning)
        # Of what stays a computation, and of instance norm, whose statistics are the image's own, as they should be.
        warnings.filterwarnings("ignore", "Constant folding|ONNX export mode", UserWarning)
        torch.onnx.export(
            _Score(detector).eval(),
            (images,),
            file,
            dynamo=False,
            opset_version=OPSET,
            input_names=[INPUT],
            output_names=list(OUTPUTS),
            dynamic_axes={name: {0: "batch"} for name in (INPUT, *OUTPUTS)},
        )
        return file.read_bytes()


class _Score(nn.Module):
    """`score` as what exporters call."""

    def __init__(self, detector: Detector) -> None:
        super().__init__()
        self.detector = detector

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        return cast(tuple[Tensor, Tensor], tuple(self.detector.score(images)))
