"""How an ingest is spread over a cluster by default: every stage finds room, in whatever order its workers are placed."""

import random

import pytest

from pipeline.ingest.run import Workers, _cpu_shares


def test_without_a_gpu_one_embedder_of_one_thread_a_cpu_that_decodes_for_itself() -> None:
    assert [Workers().on(cpus, 0) for cpus in (1, 2, 64)] == [(0, 1, 1), (0, 2, 1), (0, 64, 1)]


def test_gpus_get_one_embedder_each_and_decoders_on_half_the_cpus() -> None:
    assert Workers().on(16, 2)[:2] == (8, 2)


def test_decoders_that_are_asked_for_are_there_without_a_gpu_too_and_few_embedders_share_the_cpus() -> None:
    assert Workers(decoders=3).on(8, 0)[:2] == (3, 8)
    assert Workers(embedders=1).on(2, 0)[1:] == (1, 2)


@pytest.mark.parametrize("nodes", [[1], [2], [1, 1, 1], [2, 2], [3, 3, 2], [4] * 8, [16, 1, 1], [64, 2]])
@pytest.mark.parametrize("gpus", [0, 1])
def test_a_writer_fits_on_a_node_wherever_the_other_actors_are(nodes: list[int], gpus: int) -> None:
    decoders, embedders, _ = Workers().on(sum(nodes), gpus)
    decode, embed, write = _cpu_shares(decoders, embedders, sum(nodes))
    for seed in range(50):
        rng, free = random.Random(seed), [float(cpus) for cpus in nodes]
        for share in [*rng.sample([decode] * decoders + [embed] * embedders, decoders + embedders), write]:
            free[rng.choice([i for i, cpus in enumerate(free) if cpus >= share - 1e-9])] -= share
