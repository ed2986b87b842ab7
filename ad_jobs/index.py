"""`retroscan index`: list an archive once, into a manifest that scans refer to."""

from __future__ import annotations

from ad_jobs.archive.listing import write_manifest
from ad_jobs.archive.manifest_record import ManifestInfo
from ad_jobs.specs import IndexSpec, takes


@takes(IndexSpec)
def index(spec: IndexSpec) -> ManifestInfo:
    """The manifest of `spec.source`, written into the folder `spec.out`.

    Raises:
        UsageError: the source cannot be listed, or `out` is unusable or holds another manifest.
        JobError: the manifest could not be written.
    """
    return write_manifest(spec.source, spec.out, headers=spec.headers)
