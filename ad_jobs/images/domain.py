"""The acceptance domain of a model: what its fit saw, and which objects it therefore takes.

A detector calls abnormal whatever it has not seen: a chest under a model of brains is no finding.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from ad_jobs.errors import UsageError
from ad_jobs.images import representation
from ad_jobs.images.model_input import FULL_SCALE

if TYPE_CHECKING:
    from ad_jobs.images.decode import Frame

# How far beyond what was seen a side or a spacing may lie: a matrix of half or twice the size is everyday.
MARGIN = 4
# `--accept all`.
EVERYTHING = "all"
# What the column transfer_syntax says of what is no DICOM.
_PICTURES = frozenset({"png", "jpeg", "tiff"})


class Traits(NamedTuple):
    """What of an object decides whether a model takes it; None where the object does not say."""

    # dicom or picture: PNG, JPEG and TIFF hold the same pictures.
    kind: str | None
    modality: str | None
    body_part: str | None
    photometric: str | None
    bits: int | None
    rows: int | None
    columns: int | None
    # Between the centres of neighbouring pixels, the larger of its two values.
    spacing_mm: float | None

    @classmethod
    def of(cls, header: Mapping[str, Any]) -> Self:
        """From what a decoder tells of an object."""
        syntax = header.get("transfer_syntax")
        return cls(
            kind=None if syntax is None else "picture" if syntax in _PICTURES else "dicom",
            # What is no code says nothing: it may be a name.
            modality=representation.code(header, "modality"),
            body_part=representation.code(header, "body_part"),
            photometric=header.get("photometric"),
            bits=header.get("bits"),
            rows=header.get("rows"),
            columns=header.get("columns"),
            spacing_mm=header.get("spacing_mm"),
        )


class Taker(NamedTuple):
    """A model among several: which of their pixel policies it has, and what it takes."""

    policy: int
    domain: Domain


class Domain(BaseModel):
    """What a model takes; an object outside is skipped as `out_of_domain`.

    A field that is None excludes nothing, and an object is not excluded for what it does not say.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: tuple[Literal["dicom", "picture"], ...] | None = None
    # PS3.3 C.7.3.1.1.1.
    modality: tuple[str, ...] | None = None
    # PS3.3 C.7.3.1, table L-1 of PS3.16.
    body_part: tuple[str, ...] | None = None
    # Whether what shows colour is taken; grey ones always are: a black picture may be a camera that failed.
    colour: bool | None = None
    # Least and greatest of rows and columns, as stored.
    side_px: tuple[int, int] | None = None
    # Least and greatest between the centres of neighbouring pixels.
    spacing_mm: tuple[float, float] | None = None

    @field_validator("modality", "body_part")
    @classmethod
    def _as_codes(cls, values: tuple[str, ...] | None) -> tuple[str, ...] | None:
        return None if values is None else tuple(dict.fromkeys(_as_listed("modality", value) for value in values))

    @model_validator(mode="after")
    def _ascending(self) -> Self:
        for name in ("side_px", "spacing_mm"):
            bounds = getattr(self, name)
            if bounds is not None and not 0 < bounds[0] <= bounds[1]:
                raise ValueError(f"{name} must be two numbers above 0, the least and the greatest")
        return self

    def refusal(self, traits: Traits, coloured: bool = False) -> str | None:
        """Why an object is not taken, by all that speaks against it; None if it is.

        No text of its header stands in it but its modality, if that is a code.

        `coloured`: whether any of its frames is in colour, once that is known.
        """
        reasons = [*self._unlisted(traits), *self._beyond(traits)]
        if coloured and self.colour is False:
            reasons.append("colour, and the model takes grey pictures")
        return "; ".join(reasons) or None

    def _unlisted(self, traits: Traits) -> Iterator[str]:
        for name in _LISTED:
            taken, found = getattr(self, name), getattr(traits, name)
            if taken is not None and found is not None and found not in taken:
                # A body part is in no column of a score table, and a name in capitals is a code as well.
                shown = "another" if name == "body_part" else found
                yield f"{name} {shown}, and the model takes {', '.join(taken) or 'none'}"

    def _beyond(self, traits: Traits) -> Iterator[str]:
        if self.side_px is not None and traits.rows and traits.columns:
            low, high = self.side_px
            if not (low <= min(traits.rows, traits.columns) and max(traits.rows, traits.columns) <= high):
                yield f"side_px {traits.rows} x {traits.columns}, and the model takes {low} to {high}"
        if self.spacing_mm is not None and traits.spacing_mm:
            low_mm, high_mm = self.spacing_mm
            if not low_mm <= traits.spacing_mm <= high_mm:
                yield f"spacing_mm {traits.spacing_mm:g}, and the model takes {low_mm:g} to {high_mm:g}"

    def widened(self, accept: Iterable[str]) -> Domain:
        """The domain with what `--accept` names: `all`, a field, or FIELD=VALUE for one more value of a list."""
        if EVERYTHING in (accept := tuple(accept)):
            return Domain()
        fields = self.model_dump()
        for one in accept:
            name, with_value, value = one.partition("=")
            taken = fields[name]
            fields[name] = (*taken, _as_listed(name, value)) if with_value and taken is not None else None
        return Domain.model_validate(fields)

    def within(self, other: Domain) -> Domain:
        """What both take.

        Raises:
            UsageError: nothing, by one of their fields.
        """
        fields: dict[str, Any] = {}
        for name in Domain.model_fields:
            one, two = getattr(self, name), getattr(other, name)
            fields[name] = two if one is None else one if two is None else _both(name, one, two)
        return Domain.model_validate(fields)


_LISTED = ("kind", "modality", "body_part")


def _both(name: str, one: Any, two: Any) -> Any:
    """What two values of a field both take: of lists what is in both, of ranges where they overlap."""
    if name == "colour":
        return one and two
    found: tuple[Any, ...]
    if name in _LISTED:
        found = tuple(value for value in one if value in two)
    else:
        found = max(one[0], two[0]), min(one[1], two[1])
        found = found if found[0] <= found[1] else ()
    if not found and one and two:
        raise UsageError(
            "Models that score together take the same objects.",
            f"{name} {', '.join(map(str, one))} and {', '.join(map(str, two))}",
            "Fit them on images of one kind, or edit accepts in a domain.json.",
        )
    return found


def _as_listed(name: str, value: str) -> str:
    return value.strip().lower() if name == "kind" else value.strip().upper()


def check_accept(accept: Sequence[str]) -> tuple[str, ...]:
    """What `--accept` names, checked, each once and as a domain spells it.

    Raises:
        UsageError: no field of a domain, or a value where a field has none.
    """
    for one in accept:
        name, with_value, value = one.partition("=")
        known = one == EVERYTHING or name in Domain.model_fields
        fits = not with_value or (name in _LISTED and bool(value.strip()))
        if not known or not fits or (name == "kind" and with_value and _as_listed(name, value) not in _KINDS):
            raise UsageError(
                "--accept names what to score although the model's fit saw none of it.",
                repr(one),
                f"Write {EVERYTHING}, one of {', '.join(Domain.model_fields)}, or modality=CT, body_part=CHEST, "
                "kind=picture.",
            )
    return tuple(dict.fromkeys(map(_spelt, accept)))


def _spelt(one: str) -> str:
    name, with_value, value = one.partition("=")
    return f"{name}={_as_listed(name, value)}" if with_value else one


_KINDS = ("dicom", "picture")


class Sight(NamedTuple):
    """What a fit saw of one object."""

    traits: Traits
    coloured: bool
    # Of the mean of a frame at the detector's input, 1 = white: the darkest's and the brightest's.
    intensity: tuple[float, float] | None

    @classmethod
    def of(cls, header: Mapping[str, Any], frames: Sequence[Frame]) -> Self:
        """From what was decoded."""
        means = [round(float(frame.pixels.mean()) / FULL_SCALE, 4) for frame in frames]
        return cls(Traits.of(header), any(frame.colour for frame in frames), _range(means))


class Seen(BaseModel):
    """What a fit saw of its objects: how many of each value, and the least and the greatest of numbers."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    objects: int
    # Objects with a frame in colour.
    coloured: int
    kind: dict[str, int]
    modality: dict[str, int]
    body_part: dict[str, int]
    photometric: dict[str, int]
    bits: dict[str, int]
    rows: tuple[int, int] | None
    columns: tuple[int, int] | None
    spacing_mm: tuple[float, float] | None
    # As in Sight. It is recorded, and excludes nothing: an unusual picture is what a detector is asked for.
    intensity: tuple[float, float] | None

    @classmethod
    def of(cls, sights: Sequence[Sight]) -> Self:
        """From one sight an object."""
        traits = [one.traits for one in sights]
        counted = {
            name: dict(sorted(Counter(str(v) for t in traits if (v := getattr(t, name)) is not None).items()))
            for name in ("kind", "modality", "body_part", "photometric", "bits")
        }
        ranges = {
            name: _range(v for t in traits if (v := getattr(t, name)) is not None)
            for name in ("rows", "columns", "spacing_mm")
        }
        ranges["intensity"] = _range(mean for one in sights for mean in one.intensity or ())
        coloured = sum(one.coloured for one in sights)
        return cls.model_validate({"objects": len(sights), "coloured": coloured, **counted, **ranges})

    def accepted(self) -> Domain:
        """What a model that was fitted on this takes."""
        sides = [*(self.rows or ()), *(self.columns or ())]
        return Domain.model_validate(
            {
                **{name: sorted(getattr(self, name)) or None for name in _LISTED},
                # What is stored in colour may show some where all is well in grey: rust on steel.
                "colour": self.coloured > 0 or not all(one.startswith("MONOCHROME") for one in self.photometric),
                "side_px": (max(1, min(sides) // MARGIN), max(sides) * MARGIN) if sides else None,
                "spacing_mm": (self.spacing_mm[0] / MARGIN, self.spacing_mm[1] * MARGIN) if self.spacing_mm else None,
            }
        )


def _range(values: Iterable[float]) -> tuple[float, float] | None:
    found = list(values)
    return (min(found), max(found)) if found else None


class DomainFile(BaseModel):
    """domain.json of a model: what it takes, which may be edited, and what its fit saw."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    accepts: Domain = Field(default_factory=Domain)
    seen: Seen | None = None
