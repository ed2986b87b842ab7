"""From bytes to tensors: DICOM, ordinary pictures, and the geometry between them."""
