"""The pictures and heatmaps of a run's frames, as samples for a browser.

A frame is named by its row, never by a path: what is fetched is the object of that row, confined to the run's archive.
"""

from __future__ import annotations

import functools
import hashlib
import threading
from collections import OrderedDict
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import numpy as np
import numpy.typing as npt

from ad_jobs.archive import objects
from ad_jobs.errors import ImageError, JobError
from ad_jobs.images.decode import View, view
from ad_jobs.images.guard import GuardedDecoder
from ad_jobs.images.model_input import FULL_SCALE
from ad_jobs.images.policy import Limits, PixelPolicy
from ad_jobs.results.read import open_heatmap
from ad_jobs.results.run import RunRecord
from cluster import storage

if TYPE_CHECKING:
    from ad_jobs.verifying.run_archive import RunArchive

# A browser is given no more of a frame: it is shown on a screen.
MAX_SIDE_PX = 4096
# Of objects that were fetched: the frames of one are asked for one by one.
KEEP_BYTES = 256 << 20


class NoPicture(Exception):
    """Why a picture or heatmap cannot be shown, in words."""


class Picture(NamedTuple):
    """A frame to be shown; `changed`: its bytes are not those that were scanned."""

    view: View
    changed: bool


class Heat(NamedTuple):
    """A heatmap [h, w] with 65535 = 1.0, and the size in pixels of the whole frame that it lies over."""

    values: npt.NDArray[np.uint16]
    rows: int
    columns: int


class _Object(NamedTuple):
    data: bytes
    sha256: str


class Pictures:
    """Fetches and decodes; threads may share one. A context manager."""

    def __init__(self, run_uri: str, record: RunRecord, archive: RunArchive | None) -> None:
        """`archive` has the run's manifest; without it a run with hashed names has no pictures."""
        self._run_uri = run_uri
        self._limits = Limits.model_validate(record.config.get("limits", {}))
        self._policies = {model.model_id: PixelPolicy.model_validate(model.policy) for model in record.models}
        self._archive = archive
        self._hashed = record.config.get("identifiers") == "hashed"
        self._decoder = GuardedDecoder()
        self._kept: OrderedDict[int, _Object] = OrderedDict()
        self._lock = threading.Lock()
        # Objects that were fetched and are not what was scanned.
        self.changed: set[int] = set()

    def __enter__(self) -> Self:
        return self

    def begin(self) -> None:
        """Start the decoder, so that the first picture need not wait for it."""
        threading.Thread(target=self._decoder.work, args=(bool, b"", self._limits), daemon=True).start()

    def __exit__(self, *_: object) -> None:
        self._decoder.close()

    def picture(self, row: Mapping[str, Any], *, whole_range: bool) -> Picture:
        """The frame of a row of `frames`, under the window of the row's model, or over its whole range of values.

        Raises:
            NoPicture: it cannot be fetched or decoded.
        """
        found = self._object(row)
        changed = found.sha256 != row["content_sha256"]
        if changed:
            self.changed.add(row["object_id"])
        policy = self._policies[row["model_id"]]
        work = functools.partial(
            view, found.data, row["frame"], policy, self._limits, MAX_SIDE_PX, whole_range=whole_range
        )
        try:
            shown: View = self._decoder.work(work, found.data, self._limits)
        except ImageError as error:
            raise NoPicture(f"The picture cannot be decoded ({error.code}: {error.detail}).") from error
        return Picture(shown, changed)

    def heatmap(self, row: Mapping[str, Any]) -> Heat:
        """The heatmap of a row as it is drawn, without its padding.

        It is one ranged read.

        Raises:
            NoPicture: none was kept, or it cannot be read.
        """
        if row["heatmap"] is None:
            raise NoPicture("No heatmap was kept for this image.")
        try:
            values, geometry, _ = open_heatmap(self._run_uri, row["heatmap"]).drawn()
        except (JobError, storage.StorageError) as error:
            raise NoPicture(f"The heatmap cannot be read: {error}") from error
        box = values[geometry.top : geometry.top + geometry.height, geometry.left : geometry.left + geometry.width]
        return Heat(np.rint(box * np.float32(FULL_SCALE)).astype(np.uint16), geometry.rows, geometry.columns)

    def _object(self, row: Mapping[str, Any]) -> _Object:
        object_id = int(row["object_id"])
        with self._lock:
            if (kept := self._kept.get(object_id)) is not None:
                self._kept.move_to_end(object_id)
                return kept
        try:
            within = None if self._archive is None else self._archive.manifest.root
            data = objects.fetch(self._uri(row), self._limits.max_bytes, within).data
        except storage.NotFound as error:
            raise NoPicture("The original is gone from the archive.") from error
        except storage.AccessDenied as error:
            raise NoPicture("The archive refuses the original.") from error
        except storage.StorageError as error:
            # Its message names where a hashed object lies.
            raise NoPicture(f"The original cannot be fetched ({type(error).__name__}).") from error
        except ImageError as error:
            raise NoPicture(f"The original cannot be fetched ({error.code}).") from error
        found = _Object(data, hashlib.sha256(data).hexdigest())
        with self._lock:
            self._kept[object_id] = found
            while len(self._kept) > 1 and sum(len(one.data) for one in self._kept.values()) > KEEP_BYTES:
                self._kept.popitem(last=False)
        return found

    def _uri(self, row: Mapping[str, Any]) -> str:
        """Where the object of a row lies; raises NoPicture where names are hashed and no manifest says it."""
        if not self._hashed:
            return str(row["uri"])
        if self._archive is None:
            raise NoPicture(
                "Names are hashed, and the manifest that says where objects lie is not beside the run: "
                "start the review with --manifest MANIFEST to see pictures."
            )
        try:
            # Its reader keeps the part that it has read last.
            with self._lock:
                (source,) = self._archive.sources([int(row["object_id"])])
        except (JobError, ValueError) as error:
            raise NoPicture("The run's manifest is damaged: see `retroscan verify`.") from error
        return source.uri
