"""What a fit saw decides what a model takes: what it refuses, why, and what `--accept` adds."""

import io
from typing import Any

import numpy as np
import pytest
import scankit as kit
from PIL import Image

from ad_jobs.errors import ImageError, UsageError
from ad_jobs.images.decode import Decoded, decode, decode_each
from ad_jobs.images.dicom import DicomPicture
from ad_jobs.images.domain import Domain, DomainFile, Seen, Sight, Taker, Traits, check_accept
from ad_jobs.images.policy import Limits, PixelPolicy

POLICY = PixelPolicy(channels=1, height_px=16, width_px=16)
MR = {"transfer_syntax": "1.2.840.10008.1.2.1", "modality": "MR", "body_part": "BRAIN", "rows": 200, "columns": 100}


def sight(**header: Any) -> Sight:
    return Sight(Traits.of(MR | header), False, (0.2, 0.4))


def fitted(*sights: Sight) -> Domain:
    return Seen.of(sights).accepted()


@pytest.mark.parametrize(
    ("header", "reason"),
    [
        ({}, None),
        ({"modality": "CT"}, "modality CT, and the model takes MR"),
        ({"modality": "MR "}, None),
        ({"modality": "Doe^Jane 1950-01-02"}, None),
        ({"modality": None}, None),
        # A name in capitals is a code as well.
        ({"body_part": "DOE JANE"}, "body_part another, and the model takes BRAIN"),
        ({"body_part": "Zzyzx^Planted, born 1970"}, None),
        (
            {"modality": "CT", "body_part": "KNEE", "rows": 24},
            "modality CT, and the model takes MR; body_part another, and the model takes BRAIN; "
            "side_px 24 x 100, and the model takes 25 to 800",
        ),
        ({"transfer_syntax": "png"}, "kind picture, and the model takes dicom"),
        ({"rows": 25, "columns": 800}, None),
        ({"rows": 24}, "side_px 24 x 100, and the model takes 25 to 800"),
        ({"columns": 801}, "side_px 200 x 801, and the model takes 25 to 800"),
        ({"spacing_mm": 2.0}, None),
        ({"spacing_mm": 2.1}, "spacing_mm 2.1, and the model takes 0.125 to 2"),
        ({"spacing_mm": None}, None),
    ],
)
def test_what_is_refused(header: dict[str, Any], reason: str | None) -> None:
    domain = fitted(sight(spacing_mm=0.5))
    assert domain.refusal(Traits.of(MR | {"spacing_mm": 0.5} | header)) == reason


def test_what_the_fit_did_not_say_excludes_nothing() -> None:
    domain = fitted(Sight(Traits(None, None, None, None, None, None, None, None), True, None))
    assert domain == Domain(colour=True)
    assert domain.refusal(Traits.of(MR), coloured=True) is None


def test_several_values_are_all_taken() -> None:
    domain = fitted(sight(), sight(modality="CT", rows=3000), sight(modality=None))
    assert domain.modality == ("CT", "MR")
    assert domain.side_px == (25, 12000)


def test_what_is_stored_in_colour_may_show_some() -> None:
    assert fitted(sight(photometric="RGB"), sight()).colour is True
    assert fitted(sight(photometric="MONOCHROME1"), sight()).colour is False


def test_what_was_seen_is_counted() -> None:
    seen = Seen.of([sight(bits=12), sight(bits=12, photometric="MONOCHROME1"), sight(rows=512)])
    assert seen.model_dump(exclude_defaults=True) == {
        "objects": 3,
        "coloured": 0,
        "kind": {"dicom": 3},
        "modality": {"MR": 3},
        "body_part": {"BRAIN": 3},
        "photometric": {"MONOCHROME1": 1},
        "bits": {"12": 2},
        "rows": (200, 512),
        "columns": (100, 100),
        "spacing_mm": None,
        "intensity": (0.2, 0.4),
    }


def test_a_name_in_the_place_of_a_code_is_not_seen() -> None:
    seen = Seen.of([sight(modality="Doe^Jane 1950-01-02", body_part="Doe^Jane"), sight()])
    assert (seen.modality, seen.body_part) == ({"MR": 1}, {"BRAIN": 1})
    assert seen.accepted().modality == ("MR",)


def test_codes_are_spelt_in_one_way() -> None:
    assert DomainFile.model_validate({"accepts": {"modality": ["ct", "MR", "CT "]}}).accepts.modality == ("CT", "MR")
    assert check_accept(["modality=ct", "side_px", "modality=CT", "kind=Picture"]) == (
        "modality=CT",
        "side_px",
        "kind=picture",
    )


def test_accept_widens() -> None:
    domain = fitted(sight(spacing_mm=0.5))
    ct = Traits.of(MR | {"modality": "CT"})
    assert domain.refusal(ct)
    assert domain.widened(["modality=ct"]).modality == ("MR", "CT")
    assert domain.widened(["modality"]).modality is None
    assert domain.widened(["kind=Picture"]).kind == ("dicom", "picture")
    assert domain.widened(["spacing_mm", "side_px"]).refusal(ct) == "modality CT, and the model takes MR"
    assert domain.widened(["colour", "all"]) == Domain()
    assert Domain().widened(["modality=CT"]) == Domain(), "what takes every modality takes no other less"


@pytest.mark.parametrize("wrong", ["Modality", "modality=", "side_px=3", "kind=cucumber", "", "all=1"])
def test_what_cannot_be_accepted(wrong: str) -> None:
    with pytest.raises(UsageError, match="--accept names"):
        check_accept([wrong])


@pytest.mark.parametrize("wrong", [{"side_px": [0, 5]}, {"side_px": [9, 5]}, {"kind": ["png"]}, {"age": 3}])
def test_a_domain_that_is_none(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        DomainFile.model_validate({"accepts": wrong})


def decoded(data: bytes, *domains: Domain) -> Decoded:
    (found,) = decode_each(data, [POLICY], Limits(), takers=[Taker(0, domain) for domain in domains])
    return found


def test_an_object_that_no_domain_takes_is_not_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    found = decoded(kit.dicom(9), Domain(modality=("CT",)), Domain(kind=("picture",)))
    assert found.frames == []
    assert found.refused == ("modality MR, and the model takes CT", "kind dicom, and the model takes picture")
    assert found.header["modality"] == "MR"
    monkeypatch.setattr(DicomPicture, "read", None)
    assert decoded(kit.dicom(9), Domain(modality=("CT",))).frames == []
    with pytest.raises(TypeError):
        decoded(kit.dicom(9), Domain(modality=("MR",)))


def test_one_that_one_domain_takes_is() -> None:
    found = decoded(kit.dicom(9), Domain(modality=("CT",)), Domain(modality=("MR",)))
    assert len(found.frames) == 1
    assert found.refused == ("modality MR, and the model takes CT", None)


def test_a_model_that_refuses_an_object_costs_the_others_nothing() -> None:
    large = PixelPolicy(channels=1, height_px=64, width_px=64)
    only_ct, only_mr = Domain(modality=("CT",)), Domain(modality=("MR",))
    limits = Limits(max_input_pixels=16 * 16 * 5)
    cine = kit.dicom_of(9, 5, Modality="MR")
    small, none = decode_each(cine, [POLICY, large], limits, takers=[Taker(0, only_mr), Taker(1, only_ct)])
    assert (len(small.frames), none.frames) == (5, [])
    assert small.refused == none.refused == (None, "modality MR, and the model takes CT")


def test_a_model_that_refuses_an_object_does_so_though_it_is_broken() -> None:
    cut = kit.jpeg(3)
    cut = cut[: len(cut) // 2]
    takers = [Taker(0, Domain(kind=("picture",))), Taker(0, Domain(kind=("dicom",)))]
    (found,) = decode_each(cut, [POLICY], Limits(), takers=takers)
    assert found.refused == (None, "kind picture, and the model takes dicom")
    assert found.error is not None
    assert found.error.code == "truncated"
    with pytest.raises(ImageError):
        decode_each(cut, [POLICY], Limits(), takers=takers[:1])


def saved(pixels: np.ndarray, kind: str = "PNG") -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind)
    return file.getvalue()


def test_colour_is_judged_by_the_pixels() -> None:
    grey = np.repeat(np.arange(64, dtype=np.uint8).reshape(8, 8, 1) * 3, 3, axis=2)
    tinted, coloured = grey.copy(), grey.copy()
    tinted[3, 3, 0] += 8
    coloured[3, 3, 0] += 9
    only_grey = Domain(colour=False)
    assert decoded(saved(grey), only_grey).refused == (None,)
    assert decoded(saved(tinted), only_grey).refused == (None,), "a lossy encoder rounds"
    assert decoded(saved(coloured), only_grey).refused == ("colour, and the model takes grey pictures",)
    assert decoded(saved(coloured), only_grey).frames == []
    assert decoded(saved(grey), Domain(colour=True)).refused == (None,)
    assert [decode(saved(each), POLICY, Limits()).frames[0].colour for each in (grey, tinted, coloured)] == [
        False,
        False,
        True,
    ]


@pytest.mark.parametrize(
    ("elements", "spacing"),
    [
        ({"PixelSpacing": [0.5, 0.25]}, 0.5),
        ({"ImagerPixelSpacing": [0.2, 0.2]}, 0.2),
        ({"PixelSpacing": [0.5, 0.5], "ImagerPixelSpacing": [0.2, 0.2]}, 0.5),
        ({"PixelSpacing": [0, 0]}, None),
        # Below and above what a float of a quarter or four times as much can hold.
        ({"PixelSpacing": ["1e-323", "1e-323"]}, None),
        ({"PixelSpacing": ["1e308", "1e308"]}, None),
        ({}, None),
    ],
)
def test_spacing_and_body_part_of_a_dicom_object(elements: dict[str, list[float]], spacing: float | None) -> None:
    data = kit.dicom_of(9, BodyPartExamined="BRAIN", **elements)
    header = decode(data, POLICY, Limits()).header
    assert header["spacing_mm"] == spacing
    assert header["body_part"] == "BRAIN"


def test_spacing_of_an_enhanced_object() -> None:
    from pydicom.dataset import Dataset

    measures, group = Dataset(), Dataset()
    measures.PixelSpacing = [0.75, 0.5]
    group.PixelMeasuresSequence = [measures]
    data = kit.dicom_of(9, SharedFunctionalGroupsSequence=[group])
    assert decode(data, POLICY, Limits()).header["spacing_mm"] == 0.75


def test_what_two_domains_both_take() -> None:
    one = Domain(modality=("MR", "CT"), colour=True, side_px=(10, 100), spacing_mm=None, kind=("dicom",))
    two = Domain(modality=("CT", "CR"), colour=False, side_px=(50, 400), spacing_mm=(0.1, 2.0))
    both = Domain(modality=("CT",), colour=False, side_px=(50, 100), spacing_mm=(0.1, 2.0), kind=("dicom",))
    assert one.within(two) == two.within(one) == both
    assert one.within(Domain()) == one


@pytest.mark.parametrize(
    ("one", "two", "words"),
    [
        ({"modality": ("MR",)}, {"modality": ("CT",)}, "modality MR and CT"),
        ({"side_px": (10, 20)}, {"side_px": (30, 40)}, "side_px 10, 20 and 30, 40"),
    ],
)
def test_domains_that_exclude_each_other_are_told(one: dict[str, Any], two: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        Domain.model_validate(one).within(Domain.model_validate(two))
