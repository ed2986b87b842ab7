"""From frames to scores: batches in order, also on a device that works ahead, and the detector's own numbers."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

from ad_jobs.errors import JobError, UsageError
from ad_jobs.images.model_input import to_input
from ad_jobs.scoring.devices import Answer, Cpu, EngineCpu, best_device, channels_last, pipelined
from ad_jobs.scoring.scorer import AMP_TOLERANCE, Scorer
from models import registry
from models.detector import Detector, InputSpec, Scores

# --- Placing


@pytest.mark.parametrize("kind", registry.DETECTORS)
def test_every_detector_can_be_laid_out_for_a_gpu(kind: str) -> None:
    """Also one whose buffers have five dimensions, for which torch has no such layout: SSM's masks."""
    entry = registry.entry(kind)
    spec = InputSpec(channels=3, height_px=128, width_px=128, needs_anomalous=entry.needs_anomalous)
    detector = registry.create(kind, registry.configure(kind, {}), spec, pretrained=False)
    before = {name: tensor.clone() for name, tensor in detector.state_dict().items()}
    placed = channels_last(detector)
    assert all(
        tensor.is_contiguous(memory_format=torch.channels_last)
        for tensor in (*placed.parameters(), *placed.buffers())
        if tensor.ndim == 4
    )
    assert all(torch.equal(tensor, before[name]) for name, tensor in placed.state_dict().items())


# --- The order of things


@settings(deadline=None)
@given(st.integers(0, 9), st.integers(0, 3))
def test_every_batch_comes_out_once_in_order_and_no_more_are_under_way(count: int, ahead: int) -> None:
    under_way: list[int] = []

    def run(batch: int) -> int:
        under_way.append(batch)
        return batch

    def receive(batch: int) -> int:
        assert len(under_way) <= ahead + 1
        under_way.remove(batch)
        return batch

    found = list(pipelined(range(count), lambda batch: batch, run, receive, ahead=ahead))
    assert found == list(range(count)), "the last ones, too"
    assert not under_way


def test_a_batch_is_sent_while_the_one_before_runs_and_received_after_the_next_was_started() -> None:
    seen: list[str] = []

    def note(step: str) -> Any:
        return lambda batch: (seen.append(f"{step} {batch}"), batch)[1]

    for result in pipelined(range(3), note("send"), note("run"), note("receive"), ahead=1):
        seen.append(f"result {result}")
    assert seen == [
        "send 0",
        "run 0",
        "send 1",
        "run 1",
        "receive 0",
        "result 0",
        "send 2",
        "run 2",
        "receive 1",
        "result 1",
        "receive 2",
        "result 2",
    ]


def test_without_working_ahead_a_batch_is_done_before_the_next_is_asked_for() -> None:
    taken: list[int] = []

    def batches() -> Iterator[int]:
        for batch in range(3):
            taken.append(batch)
            yield batch

    same = pipelined(batches(), lambda b: b, lambda b: b, lambda b: b, ahead=0)
    assert [(result, len(taken)) for result in same] == [(0, 1), (1, 2), (2, 3)]


class Broken(Exception):
    """What a step raises."""


@pytest.mark.parametrize("step", ["batches", "send", "run", "receive"])
@pytest.mark.parametrize("ahead", [0, 1])
def test_what_a_step_raises_comes_out_and_nothing_is_begun_after_it(step: str, ahead: int) -> None:
    begun: list[int] = []

    def breaking(name: str) -> Any:
        def do(batch: int) -> int:
            if name == "send":
                begun.append(batch)
            if name == step and batch == 2:
                raise Broken(name)
            return batch

        return do

    def batches() -> Iterator[int]:
        for batch in range(9):
            yield breaking("batches")(batch)

    found: list[int] = []
    with pytest.raises(Broken, match=step):
        found.extend(pipelined(batches(), breaking("send"), breaking("run"), breaking("receive"), ahead=ahead))
    assert found == list(range(len(found)))
    assert begun[-1] <= 2 + (step == "receive" and ahead)


# --- The scorer


class Late:
    """A device that works ahead as a GPU does: on a thread of its own, and late."""

    kind = "cpu"
    amp = False
    ahead = 1

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1)
        # How often a batch was sent while another ran.
        self.overlapping = 0
        self._unread = 0

    def place(self, detector: Detector) -> Detector:
        return detector.eval()

    def send(self, images: Tensor) -> Tensor:
        self.overlapping += self._unread > 0
        return images.clone()

    def run(self, detector: Detector, sent: Tensor) -> Future[Scores]:
        self._unread += 1

        def work() -> Scores:
            time.sleep(0.01)
            return detector.score(sent)

        return self._thread.submit(work)

    def receive(self, running: Future[Scores]) -> Answer:
        self._unread -= 1
        return Answer(*(part.numpy() for part in running.result()))


@pytest.fixture(scope="module")
def detector() -> Detector:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        spec = InputSpec(channels=3, height_px=32, width_px=48)
        return registry.create("mkd", registry.configure("mkd", {"weights": "random"}), spec).eval()


def frames(count: int) -> list[NDArray[np.uint16]]:
    """Grey frames and, every third, one of colour."""
    rng = np.random.default_rng(0)
    return [rng.integers(0, 65536, (3 if number % 3 == 2 else 1, 32, 48)).astype(np.uint16) for number in range(count)]


def test_scores_on_the_cpu_are_those_of_the_detector_batch_by_batch(detector: Detector) -> None:
    given = frames(7)
    found = list(Scorer(detector, batch_size=3, device=Cpu()).score(given))
    for first in (0, 3, 6):
        images = torch.from_numpy(np.stack([to_input(frame, 3) for frame in given[first : first + 3]]))
        scores, heatmaps = detector.score(images)
        for one, score, heatmap in zip(found[first : first + 3], scores, heatmaps, strict=True):
            assert one.score == float(score), "to the last bit: the same batch, the same call"
            np.testing.assert_array_equal(one.heatmap, heatmap.numpy())
            assert one.finite


@pytest.mark.parametrize("count", [0, 1, 4, 5, 11])
def test_a_device_that_works_ahead_gives_the_same_in_the_same_order(detector: Detector, count: int) -> None:
    late = Late()
    found = list(Scorer(detector, batch_size=4, device=late).score(iter(frames(count))))
    expected = list(Scorer(detector, batch_size=4, device=Cpu()).score(frames(count)))
    assert [one.score for one in found] == [one.score for one in expected]
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one.heatmap, other.heatmap)
    assert late.overlapping == max(0, -(-count // 4) - 1), "every batch but the first is sent while one runs"


@pytest.mark.parametrize("device", [Cpu, Late])
def test_the_times_of_all_frames_are_no_more_than_the_time_that_passed(detector: Detector, device: Any) -> None:
    scorer = Scorer(detector, batch_size=4, device=device())
    start = time.perf_counter()
    found = list(scorer.score(frames(11)))
    passed_ms = 1e3 * (time.perf_counter() - start)
    assert all(one.score_ms > 0 for one in found)
    assert sum(one.score_ms for one in found) <= passed_ms, "batches that overlap count no time twice"


def test_on_a_cpu_the_engine_scores_and_says_so(detector: Detector, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    scorer = Scorer(detector, batch_size=3)
    found = [one.score for one in scorer.score(frames(7))]
    assert scorer.engine == f"onnxruntime {onnxruntime.__version__}"
    plain = Scorer(detector, batch_size=3, device=Cpu())
    expected = [one.score for one in plain.score(frames(7))]
    assert plain.engine == f"torch {torch.__version__}"
    np.testing.assert_allclose(found, expected, rtol=1e-5)


@pytest.mark.parametrize("threads", [1, 2])
def test_the_engine_has_the_scorers_threads(detector: Detector, threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    before, seen = torch.get_num_threads(), []
    real = onnxruntime.InferenceSession

    def session(graph: bytes, options: Any, **others: Any) -> Any:
        seen.append(options.intra_op_num_threads)
        return real(graph, options, **others)

    monkeypatch.setattr(onnxruntime, "InferenceSession", session)
    try:
        Scorer(detector, threads=threads, device=EngineCpu())
    finally:
        torch.set_num_threads(before)
    assert seen == [threads]


def test_a_batch_size_that_nobody_asked_for_is_measured_and_changes_no_score(detector: Detector) -> None:
    sizes: list[int] = []

    class Seen(EngineCpu):
        def send(self, images: Tensor) -> Tensor:
            sizes.append(len(images))
            return images

    measured = Scorer(detector, batch_size=None, at_most=8, device=Seen())
    found = [one.score for one in measured.score(frames(30))]
    assert sizes[:4] == [8, 8, 1, 1]
    asked = [one.score for one in Scorer(detector, batch_size=8, device=Cpu()).score(frames(30))]
    np.testing.assert_allclose(found, asked, rtol=1e-5)
    sizes.clear()
    list(Scorer(detector, batch_size=7, device=Seen()).score(frames(30)))
    assert sizes == [7, 7, 7, 7, 2], "what is asked for is a promise"


def test_an_answer_that_is_not_finite_is_marked_and_its_batch_mates_are_not() -> None:
    class Broken(Cpu):
        def receive(self, running: Scores) -> Answer:
            answer = super().receive(running)
            scores, heatmaps = answer.scores.copy(), answer.heatmaps.copy()
            scores[0], heatmaps[1, 0, 0] = np.inf, np.nan
            return Answer(scores, heatmaps)

    with torch.random.fork_rng():
        spec = InputSpec(channels=3, height_px=32, width_px=48)
        detector = registry.create("mkd", registry.configure("mkd", {"weights": "random"}), spec)
    found = list(Scorer(detector, device=Broken()).score(frames(3)))
    assert [one.finite for one in found] == [False, False, True]


# --- Reduced precision


def test_it_is_refused_on_a_cpu(detector: Detector, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert isinstance(best_device(), Cpu)
    with pytest.raises(UsageError) as refused:
        Scorer(detector, amp=True)
    assert "--amp is for GPUs" in refused.value.rule
    assert "Leave --amp out" in refused.value.remedy


class Coarse(Late):
    """A device whose float16 is the CPU's, so that a CPU can show what it does to scores."""

    kind = "cpu"
    amp = True

    def __init__(self, factor: float = 1.0, *, spoil: float = 0.0) -> None:
        super().__init__()
        # Of each run.
        self.reduced: list[bool] = []
        self._factor, self._spoil = factor, spoil

    def run(self, detector: Detector, sent: Tensor) -> Future[Scores]:
        # As torch.autocast("cuda") is for a GPU: it holds where the detector is called.
        self.reduced.append(torch.is_autocast_enabled("cpu"))
        found = detector.score(sent)
        if self.reduced[-1]:
            found = Scores(found.image * self._factor + self._spoil, found.heatmap)
        answer: Future[Scores] = Future()
        answer.set_result(Scores(found.image.float(), found.heatmap.float()))
        self._unread += 1
        return answer


def coarse(detector: Detector, **options: float) -> tuple[Scorer, Coarse]:
    device = Coarse(**options)
    return Scorer(detector, batch_size=4, amp=True, device=device), device


def test_every_batch_is_scored_with_it_and_only_the_first_without_as_well(detector: Detector) -> None:
    scorer, device = coarse(detector)
    found = [one.score for one in scorer.score(frames(11))]
    exact = [one.score for one in Scorer(detector, batch_size=4, device=Cpu()).score(frames(11))]
    assert device.reduced == [True, False, True, True]
    assert found != exact, "float16 was used"
    np.testing.assert_allclose(found, exact, rtol=0, atol=AMP_TOLERANCE * max(map(abs, exact)))
    list(scorer.score(frames(3)))
    assert device.reduced[4:] == [True], "once shown, not again"


@pytest.mark.parametrize("options", [{"factor": 1.1}, {"spoil": np.inf}, {"spoil": np.nan}])
def test_a_model_that_does_not_stand_it_ends_the_scan(detector: Detector, options: dict[str, float]) -> None:
    scorer, _ = coarse(detector, **options)
    with pytest.raises(JobError, match="does not stand --amp") as refused:
        list(scorer.score(frames(5)))
    assert "without --amp" in refused.value.remedy


# --- On a GPU, where there is one


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("amp", [False, True])
def test_a_gpu_gives_the_cpus_scores(detector: Detector, amp: bool) -> None:
    expected = [one.score for one in Scorer(detector, batch_size=4, device=Cpu()).score(frames(50))]
    found = [one.score for one in Scorer(detector, batch_size=4, amp=amp).score(frames(50))]
    atol = AMP_TOLERANCE * max(map(abs, expected)) if amp else 1e-5
    np.testing.assert_allclose(found, expected, rtol=0 if amp else 1e-5, atol=atol)
