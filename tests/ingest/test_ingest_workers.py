"""How an ingest is spread over a cluster by default: every stage finds room, in whatever order its workers are placed."""

import random

import pytest

from jobs.ingest import actors
from pipeline.errors import UsageError
from pipeline.ingest.run import Workers, _cpu_shares


def test_without_a_gpu_one_embedder_of_one_thread_a_cpu_that_decodes_for_itself() -> None:
    assert [Workers().on(cpus, 0) for cpus in (1, 2, 64)] == [(0, 1, 1), (0, 2, 1), (0, 64, 1)]


def test_gpus_get_one_embedder_each_and_decoders_on_half_the_cpus() -> None:
    assert Workers().on(16, 2)[:2] == (8, 2)


def test_decoders_that_are_asked_for_are_there_without_a_gpu_too_and_few_embedders_share_the_cpus() -> None:
    assert Workers(decoders=3).on(8, 0)[:2] == (3, 8)
    assert Workers(embedders=1).on(2, 0)[1:] == (1, 2)


def test_of_pools_that_grow_the_least_is_what_reservations_are_reckoned_for() -> None:
    assert Workers((2, 9), (4, 64)).on(8, 0) == (2, 4, 2)


@pytest.mark.parametrize("wrong", [0, -1, (0, 4), (4, 2)])
def test_numbers_of_actors_that_cannot_be_meant_are_refused(wrong: int | tuple[int, int]) -> None:
    with pytest.raises(UsageError, match=r"embedders (must be at least 1|cannot be at least 4 and at most 2)"):
        Workers(embedders=wrong)


def test_a_flag_is_one_number_or_the_least_and_the_most() -> None:
    assert [actors(text, "--embedders") for text in (None, "4", "2:16")] == [None, 4, (2, 16)]
    for wrong in ("", "four", "2:", ":4", "2:4:6", "2-4"):
        with pytest.raises(UsageError, match="--embedders is a number of actors, such as 4, or the least and the most"):
            actors(wrong, "--embedders")


@pytest.mark.parametrize("nodes", [[1], [2], [1, 1, 1], [2, 2], [3, 3, 2], [4] * 8, [16, 1, 1], [64, 2]])
@pytest.mark.parametrize("gpus", [0, 1])
def test_a_writer_fits_on_a_node_wherever_the_other_actors_are(nodes: list[int], gpus: int) -> None:
    decoders, embedders, _ = Workers().on(sum(nodes), gpus)
    decode, embed, write = _cpu_shares(decoders, embedders, sum(nodes))
    for seed in range(50):
        rng, free = random.Random(seed), [float(cpus) for cpus in nodes]
        for share in [*rng.sample([decode] * decoders + [embed] * embedders, decoders + embedders), write]:
            free[rng.choice([i for i, cpus in enumerate(free) if cpus >= share - 1e-9])] -= share
