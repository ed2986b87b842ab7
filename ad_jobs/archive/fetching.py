"""From objects in storage to frames at a detector's input size; what is wrong with one is data, never raised.

Nothing here knows a detector: the processes that fetch and decode must not pay for importing torch.
"""

from __future__ import annotations

import hashlib
import itertools
import logging
import time
from collections import deque
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple, Protocol, TypeVar
from urllib.parse import quote

from ad_jobs.archive import objects
from ad_jobs.errors import SKIP_CODES, ErrorCode, ImageError, JobError
from ad_jobs.images.decode import Decoded, Frame
from ad_jobs.images.domain import Domain, Taker
from ad_jobs.images.policy import Limits, PixelPolicy
from ad_jobs.schema import FAILED, SCORED, SKIPPED, storable, storable_values
from cluster import storage
from cluster.storage import retries

log = logging.getLogger(__name__)

Answer = TypeVar("Answer")

# GETs under way in one worker: a store's latency is many decodes long.
FETCH_THREADS = 8
# Of an object, each with the client's own retries, before others are asked for.
FETCH_ATTEMPTS = 3
# Of objects fetched and not yet decoded in one worker.
FETCH_AHEAD_BYTES = 64 << 20
# What error_detail says of a row that was scored all the same.
# The frame holds one value only: some decoders give up that way.
CONSTANT_FRAME = "constant_frame"
# The object is not the one that was indexed.
ETAG_CHANGED = "etag_changed"


class Source(NamedTuple):
    """One object to fetch; `bytes` and `etag` are what the manifest knows of it.

    `within` is the folder of its archive, which no link may lead out of; None where it has none.
    """

    object_id: int
    uri: str
    bytes: int | None = None
    etag: str | None = None
    within: str | None = None


class FetchedObject(NamedTuple):
    """An object's bytes, or why there are none; the time is that of the GET, and of unpacking."""

    source: Source
    data: bytes | None
    # Its etag is not the manifest's.
    changed: bool
    error: ImageError | None
    fetch_ms: float
    # The name of what is to be unpacked from the bytes, where they are gzip; of what `fetch_all` gives, none are.
    gzip: str | None = None


class Prepared(NamedTuple):
    """One object ready to be scored: its frames, or why it has none; `header` by schema.HEADER's names.

    `remarks` are what the row of a scored frame says of the object all the same.
    """

    source: Source
    remarks: tuple[str, ...]
    error: ImageError | None
    content_sha256: str | None
    bytes: int | None
    header: dict[str, object]
    frames: list[Frame]
    fetch_ms: float
    decode_ms: float | None
    # Of each model: why it does not take the object, None where it does; empty where none was given.
    refused: tuple[str | None, ...] = ()


class Decoder(Protocol):
    """What turns bytes into frames: a GuardedDecoder, or one that is shared."""

    def decode_each(
        self, data: bytes, policies: Sequence[PixelPolicy], limits: Limits, *, takers: Sequence[Taker] = ()
    ) -> list[Decoded]: ...


def status_of(code: str | None) -> str:
    """The status of a row with this error code, None being a row that was scored."""
    if code is None:
        return SCORED
    return SKIPPED if code in SKIP_CODES else FAILED


class Fetcher:
    """Gets objects, and remembers the last that came: by it an outage is told from one object that does not come."""

    def __init__(
        self,
        *,
        fetch: Callable[[str, int, str | None, str | None], objects.Packed] = objects.fetch_packed,
        fetch_range: Callable[[str, int, int], bytes] = storage.fetch_range,
        monotonic: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._fetch, self._fetch_range, self._monotonic, self._sleep = fetch, fetch_range, monotonic, sleep
        # What to ask for to see whether the store answers.
        self._last_good: str | None = None

    def get(self, source: Source, max_bytes: int) -> FetchedObject:
        """One object's bytes, or the reason why the store did not deliver them as an ImageError.

        A store that is away is waited for: an outage is no property of the objects it hits.

        Raises:
            JobError: the store refuses the credentials as such, or was away for longer than `storage.PATIENCE_S`.
        """
        start = time.perf_counter()
        fetched, error = self._answer(
            source.uri, lambda: self._fetch(source.uri, max_bytes, source.within, source.etag)
        )
        data, etag, gzip = fetched or (None, None, None)
        changed = None not in (etag, source.etag) and etag != source.etag
        return FetchedObject(source, data, changed, error, 1e3 * (time.perf_counter() - start), gzip)

    def get_range(self, uri: str, offset: int, length: int) -> tuple[bytes | None, ImageError | None]:
        """`length` bytes of an object from `offset`, or as many as there are; or why they did not come. As `get`."""
        return self._answer(uri, lambda: self._fetch_range(uri, offset, length))

    def get_beginning(self, uri: str, length: int, etag: str | None) -> tuple[bytes | None, ImageError | None]:
        """The first `length` bytes of a container's member; or why they did not come. As `get`."""
        return self._answer(uri, lambda: objects.beginning(uri, length, etag))

    def _answer(self, uri: str, ask: Callable[[], Answer]) -> tuple[Answer | None, ImageError | None]:
        try:
            return self._insist(uri, ask), None
        except ImageError as bad:
            error = bad
        except storage.NotFound as refused:
            error = ImageError(ErrorCode.NOT_FOUND, _detail(refused))
        except storage.AccessDenied as refused:
            if isinstance(refused, storage.KeysRefused) or self._delivers() is False:
                raise JobError(
                    f"The store refuses these credentials: {_detail(refused)}.",
                    "Renew them (the AWS variables or profile), and run the same command again: it continues.",
                ) from refused
            error = ImageError(ErrorCode.ACCESS_DENIED, _detail(refused))
        except storage.TooLarge as refused:
            error = ImageError(ErrorCode.TOO_MANY_BYTES, _detail(refused))
        except storage.StorageError as refused:
            error = ImageError(ErrorCode.FETCH_FAILED, _detail(refused))
        return None, error

    def _insist(self, uri: str, ask: Callable[[], Answer]) -> Answer:
        """What is asked of an object, until it comes, or until it is seen that its store delivers others and not it."""
        deadline = self._monotonic() + storage.PATIENCE_S
        others_came = False
        for attempt in itertools.count(1):
            try:
                answer = ask()
            except storage.Unreachable as error:
                if attempt >= FETCH_ATTEMPTS:
                    others_come = self._delivers()
                    # A disk that fails before it gave anything is no server that comes back.
                    if others_come is None and not storage.is_s3(uri):
                        raise
                    # Of a store that has come back between the two, the answer says nothing: others must have come
                    # before the object was asked for, too.
                    if others_come and others_came:
                        raise
                    others_came = bool(others_come)
                log.warning("%s: the store does not answer. Waiting for it.", _detail(error))
                if self._monotonic() > deadline:
                    raise JobError(
                        f"The store has not answered for {storage.PATIENCE_S / 60:.0f} minutes: {_detail(error)}.",
                        "Run the same command again once it does: it continues.",
                    ) from error
                self._sleep(retries.pause_s(attempt))
            else:
                self._last_good = objects.held_by(uri)
                return answer
        raise AssertionError("the loop ends by a return or an error")

    def _delivers(self) -> bool | None:
        """Whether the store gives a byte of an object that it gave before; None where it gave nothing yet."""
        if self._last_good is None:
            return None
        try:
            self._fetch_range(self._last_good, 0, 1)
        except storage.StorageError as error:
            # Deleted since: an answer, too.
            return isinstance(error, storage.NotFound)
        return True


# What one task of this process got tells the next that the store answers.
_OF_THIS_PROCESS = Fetcher()


def fetch_all(
    sources: Sequence[Source], max_bytes: int, fetcher: Fetcher = _OF_THIS_PROCESS
) -> Generator[FetchedObject, None, None]:
    """Every source in order, fetched by one GET each, a bounded number of bytes ahead of the caller.

    A .gz is unpacked when it is its turn: how much comes of it is not known before.
    """
    waiting = deque(sources)
    under_way: deque[tuple[Source, Future[FetchedObject]]] = deque()
    ahead = 0
    with ThreadPoolExecutor(FETCH_THREADS, thread_name_prefix="fetch") as pool:
        while waiting or under_way:
            while waiting and (
                not under_way or (len(under_way) < 2 * FETCH_THREADS and ahead + _size(waiting[0]) <= FETCH_AHEAD_BYTES)
            ):
                source = waiting.popleft()
                ahead += _size(source)
                under_way.append((source, pool.submit(fetcher.get, source, max_bytes)))
            source, future = under_way.popleft()
            yield _unpacked(future.result(), max_bytes)
            ahead -= _size(source)


def _unpacked(fetched: FetchedObject, max_bytes: int) -> FetchedObject:
    if fetched.data is None or fetched.gzip is None:
        return fetched
    start = time.perf_counter()
    data: bytes | None = None
    error: ImageError | None = None
    try:
        data = objects.Packed(fetched.data, None, fetched.gzip).content(max_bytes)
    except ImageError as bad:
        error = bad
    took_ms = fetched.fetch_ms + 1e3 * (time.perf_counter() - start)
    return fetched._replace(data=data, error=error, fetch_ms=took_ms, gzip=None)


def _size(source: Source) -> int:
    return source.bytes or 0


def _detail(error: storage.StorageError) -> str:
    # The row has a column for the URI, which --identifiers may hide; neither its detail nor a log must give it away.
    detail = storable(error.detail)
    name = error.uri.removeprefix("s3://").partition("/")[2]
    for spelling in (error.uri, name, quote(name)) if name else ():
        detail = detail.replace(spelling, "the object")
    return detail


def prepare(
    fetched: FetchedObject, policy: PixelPolicy, limits: Limits, decoder: Decoder, domains: Sequence[Domain] = ()
) -> Prepared:
    """As `prepare_each`, under one policy."""
    (prepared,) = prepare_each(fetched, [policy], limits, decoder, [Taker(0, domain) for domain in domains])
    return prepared


def prepare_each(
    fetched: FetchedObject,
    policies: Sequence[PixelPolicy],
    limits: Limits,
    decoder: Decoder,
    takers: Sequence[Taker] = (),
) -> list[Prepared]:
    """The object's frames at each policy's input size, from one decoding of the bytes; none if no model takes it.

    What is wrong with the object is in `error`, the same for every policy, never raised.
    """
    data = fetched.data
    if data is None:
        gone = Prepared(fetched.source, (), fetched.error, None, None, {}, [], fetched.fetch_ms, None)
        return [gone] * len(policies)
    start = time.perf_counter()
    decoded = [Decoded([], {}) for _ in policies]
    error: ImageError | None = None
    try:
        decoded = decoder.decode_each(data, policies, limits, takers=takers)
        error = decoded[0].error
        if error is None and not any(one.frames for one in decoded) and (not takers or None in decoded[0].refused):
            raise ImageError(ErrorCode.UNSUPPORTED_IMAGE, "it holds no frame")
    except ImageError as bad:
        error = ImageError(bad.code, storable(bad.detail))
        decoded = [Decoded([], bad.header) for _ in policies]
    decode_ms = 1e3 * (time.perf_counter() - start)
    digest = hashlib.sha256(data).hexdigest()
    changed = (ETAG_CHANGED,) if fetched.changed else ()
    return [
        Prepared(
            fetched.source,
            (*changed, *map(storable, one.remarks)),
            error,
            digest,
            len(data),
            storable_values(one.header),
            one.frames,
            fetched.fetch_ms,
            decode_ms,
            one.refused,
        )
        for one in decoded
    ]


def detail_of_scored(constant: bool, remarks: Sequence[str]) -> str | None:
    """The error_detail of a scored frame: what is remarkable of it and of its object; None for most."""
    return ", ".join([CONSTANT_FRAME] * constant + list(remarks)) or None
