"""One thread and a seed for every test of models, and one MKD of each source to copy."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import pytest
import torch
from mkdkit import LITE0, VGG, build
from workerkit import Workers, workers

from models.backbones import Backbone
from models.mkd import MKD


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def sources() -> dict[str, MKD]:
    """One detector of each source at 32x64; copied before use."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return {"lite0": build(**LITE0), "vgg16": build(**VGG)}


@pytest.fixture(scope="session")
def lite0() -> Backbone:
    """EfficientNet-Lite0 with its weights, tapped at strides of 4 to 32; it is frozen."""
    return Backbone("efficientnet_lite0", (2, 3, 4, 5))


@pytest.fixture(scope="session")
def three() -> Iterator[Workers]:
    """Three processes to be ranks."""
    with workers(3) as found:
        yield found


@pytest.fixture(params=["lite0", "vgg16"])
def detector(request: pytest.FixtureRequest, sources: dict[str, MKD]) -> MKD:
    """A detector of either source, of the test's own."""
    return copy.deepcopy(sources[request.param])
