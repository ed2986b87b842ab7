"""A detector's graph in ONNX Runtime: on a CPU the same scores as torch's, in about half of its time.

What each engine takes, and why it is this one: benchmarks/results/engines.md.
"""

from __future__ import annotations

import logging

import numpy as np
import torch
from torch import Tensor

from ad_jobs.scoring.tolerances import HEATMAP_SHARE, same_scores, share_off
from models.detector import Detector, InputSpec, Scores
from models.graph import INPUT, MOST_BYTES, OUTPUTS, to_onnx

log = logging.getLogger("retroscan.score")


class OnnxRuntime:
    """Scores as the detector does, by as many threads as torch has when it is made.

    The first batch is scored by the detector, too, and shows whether both agree; it goes on alone if they do not.
    """

    def __init__(self, detector: Detector) -> None:
        # Here: who scores on a GPU, or another kind, does without.
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.inter_op_num_threads = 1
        # It would keep twice what the largest batch took, of PaDiM at 256 px a GiB, and is no faster image by image.
        options.enable_cpu_mem_arena = False
        # Threads that wait for work leave their cores to what fetches and decodes.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self.spec: InputSpec = detector.spec
        self._session = onnxruntime.InferenceSession(to_onnx(detector), options, providers=["CPUExecutionProvider"])
        self._version = f"onnxruntime {onnxruntime.__version__}"
        # Until the first batch has shown that both agree.
        self._unproven: Detector | None = detector
        # Where they do not.
        self._instead: Detector | None = None

    @staticmethod
    def takes(detector: Detector) -> bool:
        """Whether it can run the detector at all."""
        return detector.one_graph and sum(tensor.nbytes for tensor in detector.state_dict().values()) <= MOST_BYTES

    @property
    def name(self) -> str:
        """What scores, with its version."""
        return self._version if self._instead is None else torch_name()

    def score(self, images: Tensor) -> Scores:
        """As `Detector.score`."""
        if self._instead is not None:
            return self._instead.score(images)
        if self._unproven is not None:
            return self._prove(self._unproven, images)
        self.spec.check(images)
        return self._run(images)

    def _run(self, images: Tensor) -> Scores:
        found = self._session.run(list(OUTPUTS), {INPUT: images.numpy()})
        return Scores(*(torch.from_numpy(part) for part in found))

    def _prove(self, detector: Detector, images: Tensor) -> Scores:
        expected = detector.score(images)
        if not len(images):
            return expected
        self._unproven = None
        found = self._run(images)
        (score, then), (heatmap, heat_then) = (
            (one.numpy(), other.numpy()) for one, other in zip(found, expected, strict=True)
        )
        if same_scores(score, then, float(np.abs(then).max())).all() and share_off(heatmap, heat_then) <= HEATMAP_SHARE:
            return found
        log.warning(
            "This model is scored by %s: %s differs from it by %.1e of the largest score, and %.1e of the heatmaps'.",
            torch_name(),
            self._version,
            share_off(score, then),
            share_off(heatmap, heat_then),
        )
        self._instead = detector
        return expected


def torch_name() -> str:
    """The engine that every detector is written for, with its version."""
    return f"torch {torch.__version__}"
