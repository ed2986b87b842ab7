"""Compressed pixel data for the phantoms: lossless codestreams of 12-bit greyscale frames, by GDCM."""

from __future__ import annotations

import gdcm
import numpy as np
from numpy.typing import NDArray

BITS_STORED = 12

# PS3.5 A.4: syntaxes whose pixel data is encapsulated, by UID. Process 14 SV1 is what scanners mostly write.
JPEG_LOSSLESS_SV1 = "1.2.840.10008.1.2.4.70"
JPEG_LS_LOSSLESS = "1.2.840.10008.1.2.4.80"
JPEG_2000_LOSSLESS = "1.2.840.10008.1.2.4.90"
RLE_LOSSLESS = "1.2.840.10008.1.2.5"
ENCAPSULATED = (JPEG_LOSSLESS_SV1, JPEG_LS_LOSSLESS, JPEG_2000_LOSSLESS, RLE_LOSSLESS)


def compress(stored: NDArray[np.uint16], syntax: str) -> bytes:
    """The codestream of one frame of stored values [rows, columns] in `syntax`, one of ENCAPSULATED.

    Raises:
        RuntimeError: this build of GDCM does not encode the syntax.
    """
    rows, columns = stored.shape
    plain = gdcm.DataElement(gdcm.Tag(0x7FE0, 0x0010))
    plain.SetByteStringValue(stored.astype("<u2").tobytes())
    # The writer owns the image: it must outlive it.
    writer = gdcm.ImageWriter()
    image = writer.GetImage()
    image.SetNumberOfDimensions(2)
    image.SetDimensions((columns, rows, 1))
    image.SetPixelFormat(gdcm.PixelFormat(1, 16, BITS_STORED, BITS_STORED - 1, 0))
    image.SetPhotometricInterpretation(gdcm.PhotometricInterpretation(gdcm.PhotometricInterpretation.MONOCHROME2))
    image.SetTransferSyntax(gdcm.TransferSyntax(gdcm.TransferSyntax.ExplicitVRLittleEndian))
    image.SetDataElement(plain)
    change = gdcm.ImageChangeTransferSyntax()
    change.SetTransferSyntax(gdcm.TransferSyntax(gdcm.TransferSyntax.GetTSType(syntax)))
    change.SetInput(image)
    if not change.Change():
        raise RuntimeError(f"GDCM {gdcm.Version.GetVersion()} does not encode transfer syntax {syntax}.")
    fragments = change.GetOutput().GetDataElement().GetSequenceOfFragments()
    parts = (fragments.GetFragment(i).GetByteValue().GetBuffer() for i in range(fragments.GetNumberOfFragments()))
    # The binding hands bytes over as text in which undecodable ones are escaped.
    return b"".join(part.encode("utf-8", "surrogateescape") for part in parts)
