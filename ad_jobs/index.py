"""`retroscan index`: list an archive once, into a manifest that scans refer to."""

from __future__ import annotations

from ad_jobs.archive.header_options import HeaderOptions
from ad_jobs.archive.identifiers import read_identifiers
from ad_jobs.archive.listing import write_manifest
from ad_jobs.archive.manifest_record import ManifestInfo
from ad_jobs.specs import IndexSpec, takes


@takes(IndexSpec)
def index(spec: IndexSpec) -> ManifestInfo:
    """The manifest of `spec.source`, written into the folder `spec.out`; one that was interrupted goes on.

    Raises:
        UsageError: the source cannot be listed, or `out` is unusable or holds another manifest.
        JobError: the manifest could not be written, or the store did not deliver the headers.
        ClusterError: no cluster answers at `spec.address`, or its workers failed.
    """
    identifiers = read_identifiers(spec.identifiers, spec.identifiers_key)
    headers = HeaderOptions(identifiers, spec.demographics, spec.address) if spec.headers else None
    return write_manifest(spec.source, spec.out, headers=headers)
