"""What a row says of a picture that was scored although its header contradicts itself: what was assumed instead.

They stand in `error_detail`; docs/columns.md tells them to users.
"""

from __future__ import annotations

from enum import StrEnum


class Remark(StrEnum):
    """Names are a contract like those of error codes: never renamed, only added to."""

    # Whole, but the last bytes of its code stream are missing or wrong.
    DAMAGED_END = "damaged_end"
    SAMPLES_PER_PIXEL = "samples_per_pixel_assumed"
    PLANAR_CONFIGURATION = "planar_configuration_assumed"
    BITS_STORED = "bits_stored_assumed"
    HIGH_BIT = "high_bit_assumed"
    PIXEL_REPRESENTATION = "pixel_representation_ignored"
    PHOTOMETRIC_INTERPRETATION = "photometric_interpretation_assumed"
    TRANSFER_SYNTAX = "transfer_syntax_assumed"
    OFFSET_TABLE = "offset_table_ignored"
    HIGH_BITS = "high_bits_masked"
    RESCALE = "rescale_ignored"
    RESCALE_PART = "rescale_assumed"
    MODALITY_LUT = "modality_lut_ignored"
    VOI_LUT = "voi_lut_ignored"
    LUT_FIRST = "lut_descriptor_assumed"
    LUT_SHORT = "lut_data_short"
    WINDOW = "window_ignored"
    SHAPE = "presentation_lut_shape_ignored"
    PADDING = "pixel_padding_assumed"
    NODATA = "nodata_ignored"
    # Nothing was assumed: what was to be decoded at a smaller size could not be.
    DECODED_WHOLE = "decoded_whole"
