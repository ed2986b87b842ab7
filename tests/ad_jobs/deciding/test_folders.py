"""Folders of whole batches are those of each URI by itself."""

from __future__ import annotations

import pyarrow as pa

from ad_jobs.archive.containers_names import folder_of
from ad_jobs.archive.identifiers import HASHED, is_hashed
from ad_jobs.deciding.table import folders

PLAIN = ["/a/b/c.png", "/b", "b", "s3://k/x.dcm", "s3://k/y/z.dcm", "/a b/\n/c\n.png"]
MEMBERS = ["/a/b.zip!/c.png", "/a/b.zip!/c/d.png", "/a/c.png.gz!/c.png", "/x.gz!/x", "/a/!/b"]


def test_folders_of_a_batch_are_those_of_its_uris() -> None:
    uris = [*PLAIN, *MEMBERS, f"{HASHED}ff", f"{HASHED}ff!/x"]
    wanted = [None if is_hashed(uri) else folder_of(uri) for uri in uris]
    assert folders(pa.array(uris)).to_pylist() == wanted
    assert folders(pa.array([], pa.string())).to_pylist() == []
