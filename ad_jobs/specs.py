"""What a verb is asked to do: one frozen specification a verb, checked once, where a request enters.

A field is named as the option of the command line that sets it, and takes what that option takes, so that `Spec.config`
can be handed back as `--config`.
Places (a source, a model, a run) become absolute here, and nowhere else.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, PlainSerializer, model_validator

from ad_jobs.errors import UsageError
from ad_jobs.images.domain import check_accept
from ad_jobs.images.policy import Limits, Window
from ad_jobs.specification import Spec as Spec
from ad_jobs.specification import takes as takes
from ad_jobs.values import REVIEWS as REVIEWS
from ad_jobs.values import (
    columns,
    labels_place,
    parse_size,
    parse_time,
    parse_window,
    place,
    run_place,
    several,
    size_text,
    source_place,
    time_text,
)

# Which heatmaps a run keeps: flagged ones and 1 % of the rest, ...
KeepPolicy = Literal["flagged", "all", "none"]
# How a table names studies, series and instances.
IdentifierMode = Literal["plain", "hashed", "none"]
# What `scan --since` scores again although an earlier run has it.
Retry = Literal["failed"]
Preset = Literal["fast", "paper"]
# What is decided or judged as a whole.
UnitLevel = Literal["image", "series", "study"]

CHAPTER_OBJECTS = 200_000

Place = Annotated[str, BeforeValidator(place)]
# A place, or `manifest:` and one.
Source = Annotated[str, BeforeValidator(source_place)]
RunPlace = Annotated[str, BeforeValidator(run_place)]
Places = Annotated[Sequence[Place], BeforeValidator(several), AfterValidator(tuple)]
LabelsPlace = Annotated[str, BeforeValidator(labels_place)]
Size = Annotated[tuple[int, int], BeforeValidator(parse_size), PlainSerializer(size_text)]
TileSize = Annotated[Size, BeforeValidator(partial(parse_size, option="--tile"))]
# In seconds.
Time = Annotated[float, BeforeValidator(parse_time), PlainSerializer(time_text)]
FixedWindow = Annotated[Window, BeforeValidator(parse_window)]
Share = Annotated[float, Field(ge=0, le=1)]
Rate = Annotated[float, Field(ge=0, lt=1)]
# Of torch's generators.
Seed = Annotated[int, Field(ge=0, lt=2**63)]
KeyFile = Annotated[Path, AfterValidator(Path.absolute)]
Names = Annotated[Sequence[str], BeforeValidator(several), AfterValidator(tuple)]
Columns = Annotated[Sequence[str], BeforeValidator(columns), AfterValidator(tuple)]
# What is scored although a model's fit saw none of it.
Accept = Annotated[Sequence[str], BeforeValidator(several), AfterValidator(check_accept)]


class IndexSpec(Spec):
    """List `source` into the manifest folder `out`; with `headers`, read DICOM headers into its columns."""

    source: Source
    out: Place
    headers: bool = False
    # The patient's age, as a band of five years, and sex.
    demographics: bool = False
    identifiers: IdentifierMode = "plain"
    # File with the key of hashed identifiers.
    identifiers_key: KeyFile | None = None
    # A running Ray cluster that reads headers, which a job is given always; by default RAY_ADDRESS, else this process.
    address: str | None = None

    @model_validator(mode="after")
    def _of_headers(self) -> Self:
        given = {
            "--demographics": self.demographics,
            "--identifiers": self.identifiers != "plain",
            "--identifiers-key": self.identifiers_key is not None,
        }
        asked = [option for option, is_given in given.items() if is_given]
        if asked and not self.headers:
            raise UsageError(
                "What is said of headers needs them.", f"{', '.join(asked)} without --headers", "Add --headers."
            )
        return self


# In place of a kind of detector: the best of several. In a record: how it was chosen.
AUTO = "auto"


class FitSpec(Spec):
    """Fit a detector on normal images, and write the model to `out`."""

    # A kind of `retroscan detectors`, or `auto`.
    detector: str
    normal: Source
    out: Place
    anomalous: Source | None = None
    preset: Preset = "fast"
    # Height and width in pixels; by default the preset's, or with `tile` each image's own.
    size: Size | None = None
    # Height and width in pixels of the tiles that images are cut into, which are then the detector's input.
    tile: TileSize | None = None
    # Of neighbouring tiles at least so many pixels overlap; by default an eighth of their smaller side.
    overlap: int | None = Field(default=None, ge=0)
    # Passes over the images; by default the preset's.
    epochs: int | None = Field(default=None, ge=1)
    seed: Seed = 0
    window: FixedWindow = "dicom"
    resize: Literal["stretch", "pad"] = "stretch"
    decode: Literal["full", "reduced"] = "full"
    workers: int = Field(default=1, ge=1)
    # Of the detector: backbone, layers, ...
    options: dict[str, Any] = Field(default_factory=dict, alias="set")
    limits: Limits = Field(default_factory=Limits)
    # How the calibration names the institutions that its images are from (`decide --by site`); by default not at all.
    identifiers: IdentifierMode = "none"
    identifiers_key: KeyFile | None = None
    address: str | None = None
    # Of `auto`: no candidate is begun that is not expected to end within; by default ten minutes.
    budget: Time | None = None
    # Of decoded images in memory; by default half of the object store. What is beyond is decoded again in every epoch.
    keep_mib: int | None = Field(default=None, ge=0, exclude=True)

    @model_validator(mode="after")
    def _tiles_of_an_image(self) -> Self:
        if self.tile is None:
            if self.overlap is not None:
                raise UsageError("Tiles overlap.", f"--overlap {self.overlap}", "Say how large they are with --tile.")
            return self
        if self.size is not None and (self.size[0] < self.tile[0] or self.size[1] < self.tile[1]):
            raise UsageError(
                "A tile is no larger than the images it is cut from.",
                f"--tile {size_text(self.tile)} --size {size_text(self.size)}",
                "Name a smaller --tile, or leave --size out: images keep their own resolution.",
            )
        if self.overlap is not None and 2 * self.overlap > min(self.tile):
            raise UsageError(
                "Tiles overlap by at most half of their smaller side.",
                f"--tile {size_text(self.tile)} --overlap {self.overlap}",
                f"Name {min(self.tile) // 2} or less.",
            )
        return self

    @model_validator(mode="after")
    def _percentiles_of_every_pixel(self) -> Self:
        if self.decode == "reduced" and self.window == "percentile":
            raise UsageError(
                "Percentiles are those of every pixel of a frame.",
                "--decode reduced --window percentile",
                "Leave --decode out, or give a fixed --window or the object's own, dicom.",
            )
        return self

    @model_validator(mode="after")
    def _auto_chooses_among_normals(self) -> Self:
        if self.detector != AUTO:
            if self.budget is not None:
                raise UsageError(
                    "--budget is the time in which --detector auto tries several.",
                    f"--detector {self.detector} --budget {time_text(self.budget)}",
                    "Leave it out, or let auto choose.",
                )
            return self
        given = {
            "--anomalous": self.anomalous is not None,
            "--epochs": self.epochs is not None,
            "--set": bool(self.options),
        }
        if asked := [option for option, is_given in given.items() if is_given]:
            raise UsageError(
                "--detector auto tries several kinds on normal images, each by its preset.",
                " and ".join(asked),
                "Leave it out, or name one of `retroscan detectors`.",
            )
        return self


class CalibrateSpec(Spec):
    """Set a model's threshold and heatmap scale from held-out images."""

    model: Place
    normal: Source | None = None
    anomalous: Source | None = None
    # A run that the model scored and people reviewed, in place of images.
    from_reviews: Place | None = None
    max_fpr: Rate | None = None
    max_fnr: Rate | None = None
    # With `max_fnr`: lowers the threshold by this share of its height.
    margin: Rate = 0.05
    # As of a scan.
    accept: Accept = ()
    # As of a fit.
    identifiers: IdentifierMode = "none"
    identifiers_key: KeyFile | None = None

    @model_validator(mode="after")
    def _one_rate_and_its_images(self) -> Self:
        if (self.max_fpr is None) == (self.max_fnr is None):
            raise UsageError(
                "A threshold follows from one rate.",
                f"--max-fpr {self.max_fpr}, --max-fnr {self.max_fnr}",
                "Give either --max-fpr 0.01 or --max-fnr 0.",
            )
        if (self.normal is None) == (self.from_reviews is None) or (self.from_reviews and self.anomalous):
            raise UsageError(
                "A threshold is set from held-out images, or from a reviewed run.",
                f"--normal {self.normal}, --anomalous {self.anomalous}, --from-reviews {self.from_reviews}",
                "Give --normal SOURCE, or --from-reviews RUN alone.",
            )
        if self.from_reviews is None and self.max_fnr is not None and self.anomalous is None:
            raise UsageError(
                "--max-fnr is judged on anomalous images.",
                "no --anomalous",
                "Name some with --anomalous SOURCE, or use --max-fpr.",
            )
        if self.max_fpr is not None and self.anomalous is not None:
            raise UsageError(
                "--max-fpr is judged on normal images alone.",
                f"--anomalous {self.anomalous}",
                "Leave it out, or use --max-fnr.",
            )
        return self


class FuseSpec(Spec):
    """Make one model of several fitted ones, and write it to `out`."""

    model: Places = Field(min_length=2)
    out: Place
    # Normal images that no member was fitted on; by default those that the members' fits held out.
    normal: Source | None = None
    # As of a fit.
    identifiers: IdentifierMode = "none"
    identifiers_key: KeyFile | None = None

    @model_validator(mode="after")
    def _different_models(self) -> Self:
        if len(set(self.model)) < len(self.model):
            raise UsageError("Each member is named once.", ", ".join(self.model), "Leave the second one out.")
        if self.out in self.model:
            raise UsageError("A fused model is a model of its own.", self.out, "Name a new folder with --out.")
        return self


class ScanSpec(Spec):
    """Score every object of `source` by every `model`, into the run folder `out`."""

    source: Source
    model: Places = Field(min_length=1)
    out: RunPlace
    # SQL condition over the manifest's columns.
    where: str | None = None
    # What to score although the models' fits saw none of it: `all`, a field of domain.json, or FIELD=VALUE.
    accept: Accept = ()
    # A finished run: objects that it has are left out.
    since: Place | None = None
    retry: Retry | None = None
    heatmaps: KeepPolicy = "flagged"
    identifiers: IdentifierMode = "plain"
    # File with the key of hashed identifiers.
    identifiers_key: KeyFile | None = None
    # Where the manifest of a source that is none is written; by default `out`/manifest, beside `out` for hashed ones.
    manifest_out: Place | None = None
    # The share of objects that may fail; one more, and the run ends where it is.
    max_failed: Share = 1.0
    # What one object may cost; by default the models' own.
    limits: Limits | None = None
    # File with the key that the run's record is signed with.
    key: KeyFile | None = None
    # Frames scored at once; it does not change a score.
    batch_size: int | None = Field(default=None, ge=1)
    # Reduced precision, on GPUs alone: scores then agree within `tolerances.AMP_TOLERANCE`.
    amp: bool = False
    # A running Ray cluster; embedded by default, with `num_cpus` logical CPUs.
    address: str | None = None
    num_cpus: int | None = Field(default=None, ge=1, exclude=True)
    # Objects of a chapter, each committed as a whole; at its end its last parts are waited for.
    chapter_objects: int = Field(default=CHAPTER_OBJECTS, ge=1, exclude=True)

    @model_validator(mode="after")
    def _retry_of_a_run(self) -> Self:
        if self.retry is not None and self.since is None:
            raise UsageError(
                "--retry is of objects that an earlier run has.", f"--retry {self.retry}", "Name that run with --since."
            )
        if self.since == self.out:
            raise UsageError("--since is another run than --out.", self.out, "Name a new folder with --out.")
        return self


class PlanSpec(Spec):
    """Say what a scan of `source` by every `model` will score, what it will not and why, and what it takes."""

    source: Source
    model: Places = Field(min_length=1)
    # As of a scan.
    where: str | None = None
    accept: Accept = ()
    since: Place | None = None
    retry: Retry | None = None
    heatmaps: KeepPolicy = "flagged"
    limits: Limits | None = None
    # Of the cluster that times are told for, beside this machine's; CPUs of a node.
    nodes: int = Field(default=1, ge=1)
    cores: int | None = Field(default=None, ge=1)
    # Of one node.
    price_per_hour: float | None = Field(default=None, ge=0, allow_inf_nan=False)
    # Objects that are fetched, decoded and scored to see what one takes.
    sample: int = Field(default=32, ge=2)
    # Objects whose headers are read where the source is no manifest with them.
    headers: int = Field(default=1000, ge=1)
    seed: Seed = 0


class ScoreSpec(Spec):
    """Score a few images in this process."""

    model: Place
    # As they are named by who asks; the result names them so.
    images: Names = Field(min_length=1)
    # As of a scan.
    accept: Accept = ()

    @property
    def places(self) -> tuple[str, ...]:
        """Where the images lie."""
        return tuple(map(place, self.images))


class ExportModelSpec(Spec):
    """Write the network of `model` to the file `out`, in ONNX."""

    model: Place
    out: Place

    @model_validator(mode="after")
    def _a_file_of_onnx(self) -> Self:
        if not self.out.endswith(".onnx"):
            raise UsageError("--out is a file of ONNX.", self.out, "Let its name end with .onnx.")
        return self


class ShowSpec(Spec):
    """Say what the model or the run in `folder` is."""

    folder: Place


class DemoSpec(Spec):
    """Take a phantom archive through every verb, below the local folder `out`."""

    out: str = "demo"
    seed: Seed = 0


class DoctorSpec(Spec):
    """Look what is here and what is missing."""

    address: str | None = None
    bucket: str | None = None
