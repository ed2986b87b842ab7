"""The review application: what the page in `web/` asks for, over HTTP.

Everything is told of frames by (object_id, frame).
What a blinded reader may not know does not leave this module before there is a verdict of the reader's own.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from ad_jobs.errors import RetroscanError, UsageError
from ad_jobs.page.colours import COLD, WARM, table
from ad_jobs.reviewing.agreement import agreement
from ad_jobs.reviewing.ledger import Ledger
from ad_jobs.reviewing.pictures import NoPicture, Pictures
from ad_jobs.reviewing.queries import MAX_PAGE, REVEALING, Reader, Tables, parse_filter
from ad_jobs.reviewing.verdicts import Verdict
from cluster.errors import StorageError

WEB = Path(__file__).parent / "web"
_TYPES = {".html": "text/html", ".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml"}
# What the detector says of an image or a study.
_SAID = ("rank", "score", "p", "flagged", "flagged_frames", "threshold", "heatmap", "has_heatmap")
MAX_BODY_BYTES = 4096


class Review:
    """What one reviewer sees of a run, and what may be done: the state behind the application."""

    def __init__(
        self, about: Mapping[str, Any], tables: Tables, pictures: Pictures, ledger: Ledger, *, blind: bool
    ) -> None:
        self.about, self.tables, self.pictures, self.ledger = dict(about), tables, pictures, ledger
        self.reader = Reader(ledger.reviewer, blind)
        self._models = [model["model_id"] for model in about["models"]]
        # The rows do not change.
        self._facets = {model_id: tables.facets(model_id) for model_id in self._models}
        self._known_version = 0
        self._lock = threading.Lock()

    def run(self) -> dict[str, Any]:
        """What the page needs to begin with."""
        self.pictures.begin()
        colours = {"table": table().tolist(), "cold": COLD, "warm": WARM}
        return {**self.about, "facets": self._facets, "colours": colours, "hidden_filters": list(REVEALING)}

    def page(self, asked: Mapping[str, str], *, studies: bool) -> dict[str, Any]:
        """A page of images or studies; of the first also how many there are."""
        self._look()
        model_id, found = self._model(asked), parse_filter(asked, self.reader)
        after, limit = _whole(asked, "after", 0), min(max(1, _whole(asked, "limit", 100)), MAX_PAGE)
        ask = self.tables.studies if studies else self.tables.images
        count = self.tables.count_studies if studies else self.tables.count_images
        rows = [self._shown(row, of_study=studies) for row in ask(model_id, found, after, limit)]
        return {"rows": rows} if after else {"rows": rows, "total": count(model_id, found)}

    def frame(self, object_id: int, frame: int) -> dict[str, Any]:
        """All that is told of a frame: its row under each model, its stack, its copies, and its verdicts."""
        self._look()
        rows = self._rows(object_id, frame)
        return {
            "rows": [self._shown(row) for row in rows],
            "stack": [[one["object_id"], one["frame"], one["status"]] for one in self.tables.stack(rows[0])],
            "copies": self.tables.copies(rows[0]),
        }

    def picture(self, object_id: int, frame: int, asked: Mapping[str, str]) -> Response:
        """The samples of a frame: little-endian uint16 if grey, RGB bytes if not."""
        row = self._row(object_id, frame, self._model(asked))
        whole_range = asked.get("range") == "whole"
        view, changed = self.pictures.picture(row, whole_range=whole_range)
        height, width = view.pixels.shape[:2]
        told = {
            **{"height": height, "width": width, "rows": view.rows, "columns": view.columns},
            **{"colour": view.pixels.ndim == 3, "changed": changed},
        }
        return _samples(view.pixels, told)

    def heatmap(self, object_id: int, frame: int, asked: Mapping[str, str]) -> Response:
        """The samples of a heatmap: little-endian uint16."""
        if self._is_hidden(object_id, frame):
            raise NoPicture("Heatmaps of a blinded reading are shown once you have given your verdict.")
        values, rows, columns = self.pictures.heatmap(self._row(object_id, frame, self._model(asked)))
        shape = {"height": values.shape[0], "width": values.shape[1], "rows": rows, "columns": columns}
        return _samples(values, shape)

    def say(self, said: Mapping[str, Any]) -> dict[str, Any]:
        """Note a verdict; the frame's verdicts then."""
        object_id, frame = _whole(said, "object_id"), _whole(said, "frame")
        # What cannot be told afterwards is not noted.
        self._look()
        row = self._row(object_id, frame, self._model(said))
        if object_id in self.pictures.changed:
            raise UsageError(
                "A verdict is on what was scanned.",
                "a picture whose bytes have changed since",
                "Scan it again, and review that run.",
            )
        self.ledger.say(row, str(said.get("verdict")))
        return self.frame(object_id, frame)

    def undo(self) -> dict[str, Any]:
        """Take back what this reviewer said last; which frame that was of."""
        last = self.ledger.undo()
        return {
            "withdrawn": None if last is None else {**_told(last), "object_id": last.object_id, "frame": last.frame}
        }

    def agreement(self) -> dict[str, Any]:
        """How far reviewers agree."""
        self._look()
        return agreement(self.ledger.standing())

    def _look(self) -> None:
        self.ledger.look()
        with self._lock:
            version = self.ledger.version
            if version != self._known_version:
                self.tables.know(self.ledger.standing())
                self._known_version = version

    def _model(self, asked: Mapping[str, Any]) -> str:
        model_id = asked.get("model", self._models[0])
        if model_id not in self._models:
            raise UsageError("A model is one of the run's.", repr(model_id), f"They are {', '.join(self._models)}.")
        return str(model_id)

    def _rows(self, object_id: int, frame: int) -> list[dict[str, Any]]:
        rows = self.tables.frame(object_id, frame)
        if not rows:
            raise NoPicture(f"The run has no object {object_id} with a frame {frame}.")
        # In the order of the run's record.
        return sorted(rows, key=lambda row: self._models.index(row["model_id"]))

    def _row(self, object_id: int, frame: int, model_id: str) -> dict[str, Any]:
        return next(row for row in self._rows(object_id, frame) if row["model_id"] == model_id)

    def _is_hidden(self, object_id: int, frame: int) -> bool:
        """Whether what the detector and others say is not yet for the reader."""
        if not self.reader.blind:
            return False
        return all(one.reviewer != self.reader.name for one in self.ledger.of(object_id, frame))

    def _shown(self, row: dict[str, Any], *, of_study: bool = False) -> dict[str, Any]:
        """A row as the reader may see it, with the verdicts on its frame; a study's row has those of its first."""
        # What is said of a study is said of frames that were not read yet.
        hidden = self._is_hidden(row["object_id"], row["frame"]) or (of_study and self.reader.blind)
        verdicts = [] if hidden else [_told(one) for one in self.ledger.of(row["object_id"], row["frame"])]
        shown = {name: None if hidden and name in _SAID else value for name, value in row.items()}
        return {**shown, "hidden": hidden, "verdicts": verdicts}


def application(review: Review) -> Starlette:
    """The routes; who may ask is `door`'s matter."""

    def get(answer: Callable[[Request], Any]) -> Callable[[Request], Awaitable[Response]]:
        return _answering(lambda request: run_in_threadpool(answer, request))

    def post(answer: Callable[[dict[str, Any]], Any]) -> Callable[[Request], Awaitable[Response]]:
        async def read(request: Request) -> Any:
            return await run_in_threadpool(answer, await _body(request))

        return _answering(read)

    def of_frame(request: Request) -> tuple[int, int]:
        return _whole(request.path_params, "object_id"), _whole(request.path_params, "frame")

    routes: dict[str, Callable[[Request], Any]] = {
        "/": lambda _: _file("index.html"),
        "/web/{name}": lambda request: _file(request.path_params["name"]),
        "/api/run": lambda _: review.run(),
        "/api/images": lambda request: review.page(request.query_params, studies=False),
        "/api/studies": lambda request: review.page(request.query_params, studies=True),
        "/api/agreement": lambda _: review.agreement(),
        "/api/frame/{object_id}/{frame}": lambda request: review.frame(*of_frame(request)),
        "/api/picture/{object_id}/{frame}": lambda request: review.picture(*of_frame(request), request.query_params),
        "/api/heatmap/{object_id}/{frame}": lambda request: review.heatmap(*of_frame(request), request.query_params),
    }
    return Starlette(
        routes=[
            *(Route(path, get(answer), methods=["GET"]) for path, answer in routes.items()),
            Route("/api/verdicts", post(review.say), methods=["POST"]),
            Route("/api/undo", post(lambda _: review.undo()), methods=["POST"]),
        ]
    )


def _answering(ask: Callable[[Request], Awaitable[Any]]) -> Callable[[Request], Awaitable[Response]]:
    """An endpoint that gives what is answered, or why nothing is."""

    async def endpoint(request: Request) -> Response:
        try:
            found = await ask(request)
        except NoPicture as error:
            return JSONResponse({"error": str(error)}, 404)
        except UsageError as error:
            return JSONResponse({"error": str(error)}, 400)
        except (RetroscanError, StorageError) as error:
            return JSONResponse({"error": str(error)}, 500)
        return found if isinstance(found, Response) else JSONResponse(found)

    return endpoint


async def _body(request: Request) -> dict[str, Any]:
    """The object of JSON that was sent.

    Raises:
        UsageError: it is none, or too long.
    """
    body = b""
    async for piece in request.stream():
        body += piece
        if len(body) > MAX_BODY_BYTES:
            raise UsageError("A request is short.", f"more than {MAX_BODY_BYTES} bytes", "Send one verdict.")
    try:
        found = json.loads(body or b"{}")
    # Of brackets within brackets.
    except (ValueError, RecursionError) as error:
        raise UsageError("A request is an object of JSON.", "something else", "Send one.") from error
    if request.headers.get("content-type", "").partition(";")[0] != "application/json" or not isinstance(found, dict):
        raise UsageError("A request is an object of JSON.", "something else", "Send one.")
    return found


def _file(name: str) -> Response:
    # One of the names that lie there: no path is made of what was asked for.
    known = {path.name: path for path in WEB.iterdir() if path.suffix in _TYPES}
    if name not in known:
        return JSONResponse({"error": "There is no such page."}, 404)
    return Response(known[name].read_bytes(), media_type=_TYPES[known[name].suffix])


def _samples(values: np.ndarray[Any, Any], told: Mapping[str, Any]) -> Response:
    little = values if values.dtype == np.uint8 else values.astype("<u2")
    return Response(little.tobytes(), media_type="application/octet-stream", headers={"X-Samples": json.dumps(told)})


def _told(verdict: Verdict) -> dict[str, Any]:
    noted_at = verdict.noted_at.isoformat(timespec="seconds")
    return {"reviewer": verdict.reviewer, "verdict": verdict.verdict, "noted_at": noted_at}


def _whole(asked: Mapping[str, Any], name: str, default: int | None = None) -> int:
    value = asked.get(name, default)
    text = str(value)
    if isinstance(value, bool) or not (text.isascii() and text.isdigit()) or len(text) > 18:
        raise UsageError(f"{name} is a whole number, 0 or more.", repr(value), "Give another.")
    return int(text)
