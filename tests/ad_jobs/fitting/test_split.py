"""What a fit holds out, and how it pairs normal with anomalous images."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ad_jobs.errors import JobError
from ad_jobs.fitting.split import pair, split_anomalous, split_by_group

counts = st.integers(1, 60)


@given(st.lists(st.sampled_from("abcdefgh"), min_size=2, max_size=60), st.integers(0, 5))
def test_groups_are_never_parted(groups: list[str], seed: int) -> None:
    train, held_out = split_by_group(groups, seed)
    assert sorted(train + held_out) == list(range(len(groups)))
    assert train
    assert held_out
    if len(set(groups)) > 1:
        assert not {groups[p] for p in train} & {groups[p] for p in held_out}


def test_the_split_hangs_on_the_seed_and_not_on_the_order_of_the_list() -> None:
    groups = [f"patient {n // 3}" for n in range(90)]
    order = np.random.default_rng(0).permutation(90)
    _, held_out = split_by_group(groups, 0)
    _, shuffled = split_by_group([groups[n] for n in order], 0)
    assert {groups[p] for p in held_out} == {groups[order[p]] for p in shuffled}
    assert {groups[p] for p in held_out} != {groups[p] for p in split_by_group(groups, 1)[1]}


@pytest.mark.parametrize(
    ("count", "held_out"), [(2, 1), (5, 2), (12, 6), (19, 9), (20, 10), (30, 10), (50, 10), (200, 40)]
)
def test_a_fifth_of_the_anomalous_is_held_out_and_ten_if_half_of_them_allow(count: int, held_out: int) -> None:
    train, held = split_anomalous([str(n) for n in range(count)], 0)
    assert (len(train), len(held)) == (count - held_out, held_out)


@given(st.lists(st.integers(1, 8), min_size=3, max_size=20), st.integers(0, 5))
def test_groups_of_anomalous_images_do_not_take_more_than_half(sizes: list[int], seed: int) -> None:
    groups = [str(number) for number, size in enumerate(sizes) for _ in range(size)]
    train, held = split_anomalous(groups, seed)
    assert held
    assert len(held) <= max(len(groups) // 2, max(sizes))
    assert not {groups[p] for p in train} & {groups[p] for p in held}


def test_one_anomalous_image_is_too_few() -> None:
    with pytest.raises(JobError, match=r"at least two, one of them to hold out\. Got: 1"):
        split_anomalous(["a"], 0)


@given(counts, counts, st.integers(0, 3))
@settings(max_examples=200)
def test_pairs_take_all_of_the_larger_class_once_and_the_smaller_in_rounds(n: int, m: int, seed: int) -> None:
    normal, anomalous = pair(n, m, np.random.default_rng(seed))
    assert len(normal) == len(anomalous) == max(n, m)
    for drawn, count in ((normal, n), (anomalous, m)):
        times = np.bincount(drawn, minlength=count)
        assert len(times) == count
        assert times.min() == max(n, m) // count
        assert times.max() <= -(-max(n, m) // count)


def test_pairs_follow_the_generator() -> None:
    first, again, other = (pair(40, 7, np.random.default_rng(seed)) for seed in (0, 0, 1))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)
    # Pairs are of unlike partners: the same position is not drawn beside itself.
    assert not np.array_equal(first[0] % 7, first[1])
