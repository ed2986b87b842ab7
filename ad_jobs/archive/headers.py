"""The DICOM columns of a manifest, from the first bytes of each object."""

from __future__ import annotations

from ad_jobs.archive import objects
from ad_jobs.archive.containers_names import Kind, kind_of, splits
from ad_jobs.errors import ErrorCode, ImageError
from ad_jobs.schema import storable_values
from cluster import storage

# Of a first look; nearly all headers end before.
HEADER_BYTES = 64 * 1024
# Enhanced multi-frame objects carry one item a frame before the pixels.
MAX_HEADER_BYTES = 32 * 1024 * 1024


def header_columns(uri: str, size: int | None, etag: str | None = None) -> dict[str, object]:
    """The header columns of an object of `size` bytes, by reading as few of them as it takes.

    `etag` is what its listing says of it, which of a member is where it lies.
    Empty if it is no DICOM; `header_error` says why a header could not be read.
    """
    # Only --headers needs the decoders.
    from ad_jobs.images.decode import read_header, sniff

    length = HEADER_BYTES
    # A list may not say, nor does gzip: take no cut head for a whole object.
    if size is None or any(kind_of(container) is Kind.GZIP for container, _ in splits(uri)):
        size = MAX_HEADER_BYTES + 1
    try:
        head = objects.beginning(uri, length, etag)
        if sniff(head) != "dicom":
            return {}
        found = read_header(head, size)
        while found["header_error"] == ErrorCode.TRUNCATED and len(head) == length < MAX_HEADER_BYTES:
            length *= 8
            head = objects.beginning(uri, length, etag)
            found = read_header(head, size)
    except ImageError as error:
        return {"header_error": error.code.value}
    except storage.NotFound:
        return {"header_error": ErrorCode.NOT_FOUND.value}
    except storage.AccessDenied:
        return {"header_error": ErrorCode.ACCESS_DENIED.value}
    except storage.StorageError:
        return {"header_error": ErrorCode.FETCH_FAILED.value}
    return storable_values(found)
