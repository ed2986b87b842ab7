"""`retroscan review`: a local page to look at a run's images, and to note verdicts on them."""

from __future__ import annotations

import getpass
import logging
import secrets
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from ad_jobs.archive.sql import database
from ad_jobs.deciding.record import read_decision
from ad_jobs.deciding.units import are_pictures
from ad_jobs.errors import UsageError
from ad_jobs.images.policy import PixelPolicy
from ad_jobs.results.object_columns import as_told
from ad_jobs.results.run import RunRecord, read_record
from ad_jobs.results.score_table import ScoreTable
from ad_jobs.run_specs import ReviewSpec
from ad_jobs.specs import takes

if TYPE_CHECKING:
    from starlette.types import ASGIApp

    from ad_jobs.reviewing.app import Review
    from ad_jobs.verifying.run_archive import RunArchive

HOST = "127.0.0.1"
NEEDED = ("starlette", "uvicorn")

log = logging.getLogger("retroscan.review")


class Reviewing:
    """A review of a run: its address, with the token that opens it, and the server behind it."""

    def __init__(
        self,
        spec: ReviewSpec,
        record: RunRecord,
        decision: dict[str, Any] | None,
        archive: RunArchive | None,
        opened: socket.socket,
    ):
        self._spec, self._record, self._decision, self._socket = spec, record, decision, opened
        self._archive = archive
        self._token = secrets.token_urlsafe(32)
        self.port: int = opened.getsockname()[1]
        self.address = f"http://{HOST}:{self.port}/?token={self._token}"

    def serve(self, ready: Callable[[str], object] = print) -> None:
        """Answer the browser, until Ctrl-C; `ready` is called with the address once the run's rows are sorted.

        For the main thread of a process.

        Raises:
            JobError: a part of the run, or of its verdicts, is missing or damaged.
        """
        import uvicorn

        # Who ends the process otherwise leaves no sorted rows behind either.
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        with self.app() as app, self._socket:
            self._socket.listen()
            ready(self.address)
            # Who asks is told by the token, not by headers of a proxy; the application has nothing to start or end.
            quiet = {"access_log": False, "log_level": "warning", "server_header": False, "date_header": False}
            config = uvicorn.Config(app, lifespan="off", proxy_headers=False, **quiet)
            try:
                uvicorn.Server(config).run(sockets=[self._socket])
            except KeyboardInterrupt:
                # How a review ends: every verdict has been written.
                log.info("The review has ended.")

    @contextmanager
    def app(self) -> Iterator[ASGIApp]:
        """What is served, for as long as the block lasts; raises as `serve`."""
        from ad_jobs.reviewing.app import Review, application
        from ad_jobs.reviewing.door import Door
        from ad_jobs.reviewing.ledger import Ledger
        from ad_jobs.reviewing.pictures import Pictures
        from ad_jobs.reviewing.queries import Tables
        from ad_jobs.reviewing.table import load

        spec, run = self._spec, self._spec.run
        manifest = None if self._archive is None else as_told(self._record, self._archive.manifest)
        decision = None if self._decision is None else (run, self._decision["decision_id"], self._decision["level"])
        ledger = Ledger(run, reviewer_of(spec), spec.decision)
        with database() as tables, Pictures(run, self._record, self._archive) as pictures:
            load(tables, ScoreTable(run, self._record), manifest, decision, spec.seed if spec.blind else None)
            review: Review = Review(self._about(), Tables(tables), pictures, ledger, blind=spec.blind)
            yield Door(application(review), self._token, self.port)

    def _about(self) -> dict[str, Any]:
        """What the page says of the run."""
        models = [
            {
                "model_id": one.model_id,
                "kind": one.kind,
                # Models of one window see the same picture.
                "window": str(PixelPolicy.model_validate(one.policy).window),
            }
            for one in self._record.models
        ]
        decided = self._decision
        return {
            "run": self._spec.run,
            "run_id": self._record.run_id,
            # The run whose images are not here, as they were there already.
            "since": None if self._record.parent is None else self._record.parent.run_id,
            "models": models,
            "counts": self._record.counts.model_dump(mode="json"),
            "pictures": are_pictures(ScoreTable(self._spec.run, self._record)),
            "decision": None if decided is None else {name: decided[name] for name in ("decision_id", "rule", "level")},
            "reviewer": reviewer_of(self._spec),
            "blind": self._spec.blind,
        }


@takes(ReviewSpec)
def review(spec: ReviewSpec) -> Reviewing:
    """A review of a finished run, on a port of this machine alone; `serve` answers until Ctrl-C.

    Verdicts are read by `ad_jobs.reviewing.verdicts.read_verdicts`.

    >>> review(run="run", port=0).address
    'http://127.0.0.1:.../?token=...'

    Raises:
        UsageError: not a finished run, no such decision, a port that is taken, or what serves pages is not installed; a
            `manifest` that is not the run's.
    """
    if missing := [name for name in NEEDED if find_spec(name) is None]:
        raise UsageError(
            f"review needs {' and '.join(NEEDED)}.", f"no {', '.join(missing)}", "pip install 'retroscan[review]'."
        )
    record = read_record(spec.run)
    decision = None if spec.decision is None else read_decision(spec.run, record, spec.decision)
    archive = _archive(spec, record)
    reviewer_of(spec)
    opened = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        opened.bind((HOST, spec.port))
    except OSError as error:
        opened.close()
        raise UsageError(
            "--port is a free one.", f"{spec.port} ({error.strerror})", "Give another, or 0 for any."
        ) from error
    return Reviewing(spec, record, decision, archive, opened)


def reviewer_of(spec: ReviewSpec) -> str:
    """Whose verdicts are noted; raises UsageError where nobody is named, and the system knows no user."""
    try:
        return spec.reviewer or getpass.getuser()
    except (KeyError, OSError) as error:
        raise UsageError("A verdict is somebody's.", "a user without a name", "Give one with --reviewer.") from error


def _archive(spec: ReviewSpec, record: RunRecord) -> RunArchive | None:
    """What the run was made of, by its manifest; None, and a warning, where that does not lie where the run left it."""
    # Half of a scan stands behind it, and `--help` needs none.
    from ad_jobs.verifying.run_archive import RunArchive

    try:
        return RunArchive(spec.run, record, spec.manifest)
    except UsageError as error:
        if spec.manifest is not None:
            raise
        hashed = record.config.get("identifiers") == "hashed"
        log.warning(
            "Without the run's manifest its columns cannot be filtered by%s. %s",
            ", and as names are hashed no picture is found" if hashed else "",
            error,
        )
        return None
