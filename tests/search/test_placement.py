"""Partitions stay on the nodes that have held them: whatever the order of actors, and mostly where partitions or nodes change."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.search.placement import placed

PARTITIONS = [f"partition {number}" for number in range(64)]
HOSTS = [f"10.0.0.{number}" for number in range(8)]


def owners(partitions: list[str], hosts: list[str]) -> dict[str, str]:
    return {partitions[number]: host for host, mine in zip(hosts, placed(partitions, hosts), strict=True) for number in mine}


def moved(before: dict[str, str], after: dict[str, str]) -> int:
    return sum(after[name] != host for name, host in before.items() if name in after)


@given(st.lists(st.text(), min_size=1, max_size=60, unique=True), st.lists(st.text(max_size=3), min_size=1, max_size=12))
def test_each_partition_is_held_once_and_no_actor_holds_two_more_than_another(partitions: list[str], hosts: list[str]) -> None:
    held = placed(partitions, hosts)
    assert sorted(number for mine in held for number in mine) == list(range(len(partitions)))
    sizes = [len(mine) for mine in held]
    assert len(held) == len(hosts) and max(sizes) - min(sizes) <= 1
    assert all(list(mine) == sorted(mine) for mine in held)


def test_the_order_of_actors_does_not_matter() -> None:
    """Ray starts the actors of the next search on the nodes in another order."""
    assert owners(PARTITIONS, HOSTS[3:] + HOSTS[:3]) == owners(PARTITIONS, HOSTS)
    two_each = owners(PARTITIONS, HOSTS * 2)
    assert owners(PARTITIONS, sorted(HOSTS * 2)) == two_each and all(list(two_each.values()).count(host) == 8 for host in HOSTS)


@pytest.mark.parametrize(
    ("partitions", "hosts", "most"),
    [
        ([*PARTITIONS, "added"], HOSTS, 6),
        (PARTITIONS[1:], HOSTS, 6),  # 56 of 63 stand at another number now
        (PARTITIONS, [*HOSTS, "10.0.0.8"], 24),  # a ninth has to move
        (PARTITIONS, HOSTS[1:], 24),  # an eighth has to
    ],
)
def test_few_move_where_a_partition_or_a_node_comes_or_goes(partitions: list[str], hosts: list[str], most: int) -> None:
    assert moved(owners(PARTITIONS, HOSTS), owners(partitions, hosts)) <= most
