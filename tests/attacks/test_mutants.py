"""Every truncation and every single flipped bit of small honest files.

A file that is cut short is an error, whatever the format. Where everything that is read has a
checksum, a flipped bit is an error or changes nothing; elsewhere it may change a value, and what is
asked is what is asked of every file: one family of errors, and no side effect.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from .case import Case
from .harness import Worker
from .seeds import Seed, seeds

SEEDS = tuple(seeds())


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Worker, Worker]]:
    """Two armed processes, each for one half of a file."""
    both = Worker(str(tmp_path_factory.mktemp("one"))), Worker(str(tmp_path_factory.mktemp("two")))
    yield both
    for worker in both:
        worker.close()


def _mutants(seed: Seed, kind: str, pair: tuple[Worker, Worker]) -> tuple[Counter[str], list[int]]:
    """How many mutants came out how, and the places of those that read as something else."""
    size = len(seed.data)
    case = Case(seed.name, seed.data, seed.file, beside=seed.beside)
    bounds = ((0, size // 2), (size // 2, size))

    def half(worker: Worker, bound: tuple[int, int]) -> dict[str, dict[str, int]]:
        return worker.examine(case, kind, first=bound[0], last=bound[1])

    with ThreadPoolExecutor(2) as threads:
        halves = list(threads.map(half, pair, bounds))
    outcomes: Counter[str] = Counter()
    for found in halves:
        outcomes.update(found["outcomes"])
    return outcomes, [place for found in halves for place in found["changed"]]


@pytest.mark.parametrize("seed", SEEDS, ids=str)
def test_a_file_cut_short_is_never_read(
    seed: Seed, pair: tuple[Worker, Worker], count: Callable[[str, int], None]
) -> None:
    outcomes, changed = _mutants(seed, "cut", pair)
    assert sum(outcomes.values()) == len(seed.data)
    # What a darknet file should hold, only a network's layers tell.
    assert seed.name == "darknet" or not changed, changed
    assert not outcomes["same"], outcomes
    count("truncated files", sum(outcomes.values()))


@pytest.mark.parametrize("seed", SEEDS, ids=str)
def test_a_flipped_bit_is_an_error_or_harmless(
    seed: Seed, pair: tuple[Worker, Worker], count: Callable[[str, int], None]
) -> None:
    outcomes, changed = _mutants(seed, "flip", pair)
    assert sum(outcomes.values()) == 8 * len(seed.data)
    if seed.checked:
        assert not changed, [(place // 8, place % 8) for place in changed]
        count(
            "flipped bits of zip checkpoints, none read as something else", sum(outcomes.values())
        )
    else:
        count("flipped bits of formats without checksums", sum(outcomes.values()))
