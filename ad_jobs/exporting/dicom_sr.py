"""Scores of a study as a Measurement Report (PS3.16 TID 1500), told by an algorithm with its name (TID 4019)."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from highdicom.coding_schemes import CodingSchemeIdentificationItem
from highdicom.sr import (
    AlgorithmIdentification,
    ComprehensiveSR,
    DeviceObserverIdentifyingAttributes,
    ImageRegion,
    Measurement,
    MeasurementReport,
    MeasurementsAndQualitativeEvaluations,
    ObservationContext,
    ObserverContext,
    PlanarROIMeasurementsAndQualitativeEvaluations,
    QualitativeEvaluation,
    SourceImageForMeasurementGroup,
    SourceImageForRegion,
    TrackingIdentifier,
)
from pydicom.sr.codedict import codes
from pydicom.uid import VLWholeSlideMicroscopyImageStorage

from ad_jobs.exporting.dicom_header import Header
from ad_jobs.exporting.dicom_made import RESEARCH, SCHEME, Maker, code
from ad_jobs.exporting.originals import Row

_SCORE = code("score", "Score of the difference from normal images")
_THRESHOLD = code("threshold", "Threshold of the score")
_FLAGGED = code("flagged", "Flagged by the rule")
_FINDING = code("different", "Differs from normal images")


class Told(NamedTuple):
    """A frame that a report is of; `region` is an outline in its pixels, column and row, or None."""

    row: Row
    header: Header
    region: npt.NDArray[np.float64] | None


def report(maker: Maker, frames: list[Told], number: int) -> tuple[str, bytes]:
    """(SOP Instance UID, bytes) of the report on frames of one study and model, the `number`-th of its series."""
    first = frames[0].header
    model_id = frames[0].row["model_id"]
    uid = maker.uid(model_id, *((told.header.sop, told.row["frame"]) for told in frames))
    algorithm = AlgorithmIdentification(
        name=f"retroscan {maker.model(model_id).kind}",
        version=maker.version,
        parameters=_parameters(maker, model_id),
        manufacturer="retroscan",
    )
    content = MeasurementReport(
        observation_context=ObservationContext(observer_device_context=observer(maker, model_id)),
        procedure_reported=codes.SCT.ImagingProcedure,
        imaging_measurements=[_group(maker, told, algorithm) for told in frames],
        title=codes.DCM.ImagingMeasurementReport,
    )
    evidence = {told.header.sop: told.header.stand_in() for told in frames}
    made = ComprehensiveSR(
        evidence=list(evidence.values()),
        content=content[0],
        sop_instance_uid=uid,
        instance_number=number,
        is_complete=True,
        coding_schemes=[CodingSchemeIdentificationItem(SCHEME, name="Codes of retroscan")],
        **maker.series(first, model_id),
    )
    return uid, maker.stamped(made, first)


def observer(maker: Maker, model_id: str | None) -> ObserverContext:
    """The device that observed: this version of retroscan with a model."""
    series = {} if model_id is None else {"serial_number": model_id}
    return ObserverContext(
        observer_type=codes.DCM.Device,
        observer_identifying_attributes=DeviceObserverIdentifyingAttributes(
            uid=maker.uid("device", model_id),
            name="retroscan",
            manufacturer_name="retroscan",
            model_name="retroscan" if model_id is None else f"retroscan {maker.model(model_id).kind}",
            **series,
        ),
    )


def _parameters(maker: Maker, model_id: str) -> list[str]:
    told = [f"model_id {model_id}", f"weights_sha256 {maker.model(model_id).weights_sha256}", f"run {maker.run_id}"]
    return [*told, *([f"decision {maker.decision_id}"] if maker.decision_id else []), RESEARCH]


def _shortest(value: float) -> float:
    """A float32 as the shortest decimal number that reads back as it."""
    return float(str(np.float32(value)))


def _group(maker: Maker, told: Told, algorithm: AlgorithmIdentification) -> MeasurementsAndQualitativeEvaluations:
    """What is told of one frame; with its hot region, where that has one outline."""
    row, header, region = told
    frame = int(row["frame"])
    numbers = [frame + 1] if header.multi_frame else None
    given = {
        "tracking_identifier": TrackingIdentifier(
            uid=maker.uid("tracking", header.sop, frame, row["model_id"]),
            identifier=f"object {row['object_id']}, frame {frame}",
        ),
        "finding_type": _FINDING,
        "algorithm_id": algorithm,
        "measurements": [
            Measurement(name=name, value=_shortest(row[column]), unit=codes.UCUM.NoUnits)
            for name, column in ((_SCORE, "score"), (_THRESHOLD, "threshold"))
            if row[column] is not None
        ],
        "qualitative_evaluations": [QualitativeEvaluation(_FLAGGED, codes.SCT.Yes if row["flagged"] else codes.SCT.No)],
    }
    if region is None:
        image = SourceImageForMeasurementGroup(header.sop_class, header.sop, numbers)
        return MeasurementsAndQualitativeEvaluations(source_images=[image], **given)
    return PlanarROIMeasurementsAndQualitativeEvaluations(
        referenced_region=ImageRegion(
            "POLYLINE",
            region,
            source_image=SourceImageForRegion(header.sop_class, header.sop, numbers),
            # Of a slide each frame is a tile (PS3.3 C.18.6.1.1); elsewhere there is nothing to tell apart.
            pixel_origin_interpretation="FRAME" if header.sop_class == VLWholeSlideMicroscopyImageStorage else None,
        ),
        **given,
    )
