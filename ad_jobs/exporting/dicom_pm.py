"""A heatmap as Parametric Map (PS3.3 A.75): floats on the frame's own pixels, at its place in the patient."""

from __future__ import annotations

import numpy as np
from highdicom import VOILUTTransformation
from highdicom.pm import ParametricMap, RealWorldValueMapping
from pydicom.sr.codedict import codes

from ad_jobs.exporting.dicom_header import Header
from ad_jobs.exporting.dicom_made import Maker, code
from ad_jobs.exporting.originals import Refused, Row
from ad_jobs.exporting.tally import Refusal
from ad_jobs.results.read import Heatmap


def parametric_map(maker: Maker, header: Header, row: Row, heatmap: Heatmap, number: int) -> tuple[str, bytes]:
    """(SOP Instance UID, bytes) of the map, the `number`-th of its series from 1.

    Values are float32 in [0, 1] on the run's global scale; the real world value mapping leads to the model's own unit.

    Raises:
        Refused: the frame has no place in space.
    """
    model_id, frame = row["model_id"], int(row["frame"])
    plane = header.plane(frame)
    if plane is None:
        raise Refused(Refusal.NO_GEOMETRY)
    model = maker.model(model_id)
    uid = maker.uid(header.sop, frame, model_id)
    made = ParametricMap(
        source_images=[header.stand_in(plane)],
        pixel_array=np.ascontiguousarray(heatmap.on_source(), np.float32),
        sop_instance_uid=uid,
        instance_number=number,
        contains_recognizable_visual_features=False,
        real_world_value_mappings=[
            RealWorldValueMapping(
                lut_label="HEATMAP",
                lut_explanation="Score map in the model's unit, clipped at both ends",
                unit=codes.UCUM.NoUnits,
                value_range=(0.0, 1.0),
                slope=model.heatmap_high - model.heatmap_low,
                intercept=model.heatmap_low,
                quantity_definition=code("heatmap", "Map of the difference from normal images"),
            )
        ],
        # PS3.3 C.11.2.1.3.2: of floats there is no half a step at either end.
        voi_lut_transformations=[
            VOILUTTransformation(window_center=0.5, window_width=1.0, voi_lut_function="LINEAR_EXACT")
        ],
        content_label="HEATMAP",
        content_description="Where the frame differs from normal images",
        **maker.series(header, model_id),
    )
    measures = made.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0]
    # highdicom writes both: of one frame there is no distance to another, and not every source has a thickness.
    measures.pop("SpacingBetweenSlices", None)
    if plane.thickness is None:
        measures.pop("SliceThickness", None)
    dimensions = maker.uid("dimensions", header.sop, frame, model_id)
    for item in (*made.DimensionIndexSequence, *made.DimensionOrganizationSequence):
        item.DimensionOrganizationUID = dimensions
    made.DerivationDescription = f"Heatmap of the frame by {maker.of_whom(model_id)}"
    header.refer(made, frame)
    header.mark_image(made)
    return uid, maker.stamped(made, header)
