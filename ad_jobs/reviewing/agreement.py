"""How far reviewers agree on what several of them read.

Percent agreement, and what of it is beyond chance: Cohen's kappa of two reviewers (Cohen 1960), Fleiss' of more
(Fleiss 1971), in its form for frames that different numbers of reviewers read, two or more each.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

from ad_jobs.reviewing.verdicts import Verdict
from ad_jobs.schema import REJECTED


def agreement(verdicts: Iterable[Verdict]) -> dict[str, Any]:
    """JSON-able, of standing verdicts.

    `verdicts`, and how many of each reviewer; `read_by_several`: frames that two or more read.
    `abnormal` judges only whether a frame is abnormal (accepted or supplemented), `words` the words themselves.
    Each has `agree`, the share of pairs of verdicts on a frame that are the same, and `kappa`; or null.
    """
    by_frame: dict[tuple[int, int], dict[str, str]] = defaultdict(dict)
    by_reviewer: Counter[str] = Counter()
    for one in verdicts:
        by_frame[one.key][one.reviewer] = one.verdict
        by_reviewer[one.reviewer] += 1
    several = [said for said in by_frame.values() if len(said) > 1]
    readers = sorted({reviewer for said in several for reviewer in said})
    abnormal = [{reviewer: str(word != REJECTED) for reviewer, word in said.items()} for said in several]
    return {
        "verdicts": sum(by_reviewer.values()),
        "reviewers": dict(sorted(by_reviewer.items())),
        "read_by_several": len(several),
        "statistic": None if not several else "Cohen" if len(readers) == 2 else "Fleiss",
        "abnormal": _judged(abnormal, readers),
        "words": _judged(several, readers),
    }


def _judged(said: Sequence[dict[str, str]], readers: Sequence[str]) -> dict[str, float | None]:
    if not said:
        return {"agree": None, "kappa": None}
    if len(readers) == 2:
        return cohen([(of_frame[readers[0]], of_frame[readers[1]]) for of_frame in said])
    return fleiss([Counter(of_frame.values()) for of_frame in said])


def cohen(pairs: Sequence[tuple[str, str]]) -> dict[str, float | None]:
    """Of the verdicts of two reviewers on one or more frames; kappa is None where each always says the same word.

    >>> cohen([("a", "a"), ("a", "b"), ("b", "b"), ("b", "b")])
    {'agree': 0.75, 'kappa': 0.5}
    """
    n = len(pairs)
    first, second = Counter(one for one, _ in pairs), Counter(other for _, other in pairs)
    agree = sum(one == other for one, other in pairs) / n
    return _beyond_chance(agree, sum(first[word] * second[word] for word in first) / n**2)


def fleiss(counts: Sequence[Counter[str]]) -> dict[str, float | None]:
    """Of frames, by how many reviewers, two or more, gave which word."""
    total = sum(found.total() for found in counts)
    words = sum(counts, Counter[str]())
    agree = sum(
        sum(n * (n - 1) for n in found.values()) / (found.total() * (found.total() - 1)) for found in counts
    ) / len(counts)
    return _beyond_chance(agree, sum((n / total) ** 2 for n in words.values()))


def _beyond_chance(agree: float, by_chance: float) -> dict[str, float | None]:
    return {"agree": agree, "kappa": (agree - by_chance) / (1 - by_chance) if by_chance < 1 else None}
