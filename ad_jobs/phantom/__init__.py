"""Head-like phantoms as a DICOM archive, with lesions, masks, broken files and planted identifiers."""

from ad_jobs.phantom.archive import PhantomArchive, generate

__all__ = ["PhantomArchive", "generate"]
