"""What rows are ranked among: the held-out normals of their model, or of their own group where it has enough."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from ad_jobs.archive.identifiers import Naming
from ad_jobs.deciding.cells import Cell, by_values
from ad_jobs.deciding.p_values import Reference
from ad_jobs.errors import UsageError
from ad_jobs.scoring.held_out import naming_of


class HeldOutScores(NamedTuple):
    """The held-out scores that a model's rows are judged against, and the calibration they belong to."""

    calibration_id: str | None
    sha256: str
    # As held_out.HELD_OUT, or what of it an earlier version kept.
    table: pa.Table

    @property
    def naming(self) -> Naming:
        """How it names sites."""
        return naming_of(self.table.schema)

    @property
    def normal(self) -> pa.Table:
        """The rows of normal images."""
        return self.table.filter(pc.invert(self.table["anomalous"]))

    @property
    def anomalous(self) -> NDArray[np.float32]:
        """The scores of the anomalous images."""
        found: NDArray[np.float32] = self.table.filter(self.table["anomalous"])["score"].to_numpy()
        return found


class Judge(Protocol):
    """How suspicious rows are, and the same of held-out normals."""

    @property
    def reference(self) -> Reference: ...

    def measure(self, rows: pa.RecordBatch) -> NDArray[Any]:
        """Of each row a number, larger = more suspicious, which `reference` has the levels of."""
        ...


class FrameJudge(NamedTuple):
    """Frames by their scores."""

    reference: Reference

    @classmethod
    def of(cls, normal: pa.Table) -> FrameJudge:
        """From the rows of held-out normals."""
        return cls(Reference(normal["score"].to_numpy()))

    def measure(self, rows: pa.RecordBatch) -> NDArray[Any]:
        return floats(rows["score"])


J = TypeVar("J", bound=Judge)


class Judges(Generic[J]):
    """Of each cell its judge: of the held-out normals with its values if they are enough, else of all of its model."""

    def __init__(
        self,
        held_out: Mapping[str, HeldOutScores],
        columns: Sequence[str],
        made: Callable[[pa.Table], J],
        needed: float,
    ) -> None:
        """`needed` is how many a judge's reference must have, so that the rule can flag something by it.

        Raises:
            UsageError: held-out scores of a version that kept no such columns.
        """
        self._all = {model_id: made(held.normal) for model_id, held in held_out.items()}
        self._own: dict[Cell, J] = {}
        for model_id, held in held_out.items():
            check_columns(held, columns, "--by " + ",".join(columns))
            for values, normal in by_values(held.normal, columns) if columns else ():
                if (judge := made(normal)).reference.n >= needed:
                    self._own[Cell(model_id, values)] = judge

    def of(self, cell: Cell) -> J:
        """What the rows of a cell are judged by."""
        return self._own.get(cell) or self._all[cell.model_id]

    def has_own(self, cell: Cell) -> bool:
        """Whether that is its own."""
        return cell in self._own


def check_columns(held: HeldOutScores, columns: Sequence[str], asked: str) -> None:
    """Raise UsageError where a calibration has not kept these columns of its held-out images."""
    if set(columns) - set(held.table.column_names):
        raise UsageError(
            "What held-out images were of is known of calibrations that kept it.",
            f"{asked}, and calibration {held.calibration_id} of an earlier version",
            "Calibrate the model again, and name that calibration with --calibration current.",
        )


def floats(column: pa.Array) -> NDArray[np.float32]:
    """A column without nulls as float32."""
    return column.to_numpy(zero_copy_only=False).astype(np.float32)
