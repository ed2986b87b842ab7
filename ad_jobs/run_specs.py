"""What a verb is asked of a run that is finished: specifications as in specs.py, which makes models and runs."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from ad_jobs.errors import UsageError
from ad_jobs.specs import Columns, KeyFile, LabelsPlace, Names, Place, Rate, Seed, Source, Spec, UnitLevel

# What `export` writes: a file, or a folder of pictures or of DICOM objects; by its suffix where it is a file.
TABLES = {"csv": ".csv", "xlsx": ".xlsx"}
ExportFormat = Literal["csv", "xlsx", "png", "dicom-sc", "dicom-pm", "dicom-sr", "dicom-ko"]


class DecideSpec(Spec):
    """Flag a finished run's rows by a rule, and write them to `run`/decisions."""

    run: Place
    # The share of normal images that may be flagged, by conformal p-values.
    max_fpr: Rate | None = None
    # The share of normals that may be expected among those flagged (Benjamini and Hochberg).
    fdr: Rate | None = None
    # The share of anomalous images that may be missed, as held-out ones show.
    max_fnr: Rate | None = None
    # So many of the most suspicious.
    top: int | None = Field(default=None, ge=1, lt=2**63)
    # What is flagged: single frames, or studies or series (folders, of images without one) as a whole.
    level: UnitLevel = "image"
    # Columns of the header by which the run is divided: each group is judged by its own held-out normals, if enough.
    by: Columns = ()
    # A CSV, or a workbook (.xlsx), to write what is flagged to, by rank.
    worklist: Place | None = None
    # Whose held-out scores to judge against: the id of one that the model keeps, or `current`; by default the run's.
    calibration: str | None = None

    @model_validator(mode="after")
    def _one_rule(self) -> Self:
        if len(self.rule()) != 1:
            raise UsageError(
                "A decision follows from one rule.",
                ", ".join(f"--{name.replace('_', '-')} {value}" for name, value in self.rule().items()) or "none",
                "Give one of --max-fpr 0.01, --fdr 0.1, --max-fnr 0 and --top 50.",
            )
        if self.level != "image" and self.max_fnr is not None:
            raise UsageError(
                "Studies and series are decided by normal ones alone.",
                f"--level {self.level} --max-fnr {self.max_fnr:g}",
                "Give --max-fpr, --fdr or --top.",
            )
        if self.by and self.max_fpr is None and self.fdr is None:
            raise UsageError(
                "Groups are judged each by its own normals, for a rate of these.",
                f"--by {','.join(self.by)} without --max-fpr and --fdr",
                "Give --max-fpr or --fdr, or leave --by out.",
            )
        return self

    def rule(self) -> dict[str, float | int]:
        """The rule's name and number."""
        given = {name: getattr(self, name) for name in ("max_fpr", "fdr", "max_fnr", "top")}
        return {name: value for name, value in given.items() if value is not None}


class EvaluateSpec(Spec):
    """Compare a run with labels; `bootstrap` replicates give the intervals, none if 0."""

    run: Place
    # A CSV, or `reviews` for what reviewers said of this run.
    labels: LabelsPlace
    seed: Seed = 0
    bootstrap: int = Field(default=1000, ge=0)
    # The id of one of the run's: what it flagged is judged, and not what the run did.
    decision: str | None = None
    # What counts as one.
    level: UnitLevel = "image"
    # With which the run's identifiers were hashed: labels may then name images as they are.
    identifiers_key: KeyFile | None = None


class ReportSpec(Spec):
    """Write a run's report, a page with the `top` highest-scored frames of each model as pictures."""

    run: Place
    top: int = Field(default=24, ge=1, le=1000)
    # The id of one of the run's: what it flagged is shown, and not what the run did.
    decision: str | None = None
    # Of a run with hashed identifiers: its originals are found by it, and shown.
    manifest: Source | None = None


class ReviewSpec(Spec):
    """Serve a page on which a reviewer looks at a run's images and notes verdicts."""

    run: Place
    # Of this machine; 0 takes one that is free.
    port: int = Field(default=0, ge=0, le=65535)
    # Whose verdicts are noted; by default the user's of this machine.
    reviewer: str | None = Field(default=None, pattern=r"\S", max_length=100)
    # The id of one of the run's: what it flagged and how it ranks is shown, and not what the run did.
    decision: str | None = None
    # Neither scores nor heatmaps nor others' verdicts are shown before one's own.
    blind: bool = False
    # Draws the order of a blinded reading.
    seed: Seed = 0
    # That the run was made from, where it lies elsewhere now.
    manifest: Source | None = None


class CompareSpec(Spec):
    """Compare two runs, or two decisions, and write what differs to `out`; by default below run B."""

    run_a: Place
    # By default run A: two of its decisions are compared, or one and what the run itself flagged.
    run_b: Place | None = None
    # Of A and of B, by their ids; of one run one is enough, and A is then the run itself.
    decision: Names = Field(default=(), max_length=2)
    out: Place | None = None

    @model_validator(mode="after")
    def _two_of_something(self) -> Self:
        if self.run_b is None and not self.decision:
            raise UsageError("Two runs are compared, or decisions.", "one run", "Name another, or give --decision ID.")
        if self.run_b is not None and len(self.decision) == 1:
            raise UsageError(
                "Of two runs a decision of each is compared.", "one --decision", "Give --decision twice: of A, of B."
            )
        return self


class VerifySpec(Spec):
    """Check a run against its record, and score `sample` of its objects again."""

    run: Place
    sample: int = Field(default=100, ge=0)
    seed: Seed = 0
    # Of models that decode reduced frames: also tell what decoding whole ones would change.
    full: bool = False
    # File with the key that the run's record was signed with.
    key: KeyFile | None = None
    # With which the run's identifiers were hashed.
    identifiers_key: KeyFile | None = None
    # That the run was made from, where it lies elsewhere now.
    manifest: Source | None = None

    @model_validator(mode="after")
    def _full_of_a_sample(self) -> Self:
        if self.full and not self.sample:
            raise UsageError("--full is of objects that are scored again.", "--full --sample 0", "Sample some, or all.")
        return self


class ExportSpec(Spec):
    """Hand on what `run`, or one of its decisions, flagged: as a table, as pictures or as DICOM, to `out`."""

    run: Place
    # Of a table the file, else a folder.
    out: Place
    format: ExportFormat
    # The id of one of the run's decisions: what it flagged, and not what the run did.
    decision: str | None = None
    # The so many highest of each model instead of what is flagged.
    top: int | None = Field(default=None, ge=1, lt=2**63)
    # All rows.
    all: bool = False
    # Of a run with hashed identifiers, where it does not lie beside the run.
    manifest: Source | None = None

    @model_validator(mode="after")
    def _one_selection_and_its_place(self) -> Self:
        if self.top is not None and self.all:
            raise UsageError("Rows are selected in one way.", f"--top {self.top} --all", "Leave one out.")
        if self.format == "dicom-ko" and (self.top is not None or self.all):
            raise UsageError(
                "Key objects are what reviewers accepted or supplemented.",
                "--all" if self.all else f"--top {self.top}",
                "Leave it out; --decision takes what was reviewed by that decision.",
            )
        suffix = TABLES.get(self.format)
        if suffix is not None and not self.out.endswith(suffix):
            raise UsageError(
                f"--out of --format {self.format} is a file.", self.out, f"Let its name end with {suffix}."
            )
        return self
