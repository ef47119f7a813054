"""Which search actor holds which partition: the one on the node that has held it before, so that its files lie there already.

A node keeps what it has read of an index: files of one in a bucket in its cache (`pipeline.index.cached_files`), rows of any in
the system's memory. So the place of a partition follows from its id and the nodes' addresses alone, by rendezvous hashing (Thaler
and Ravishankar, 1998: a partition goes to the place whose hash with it is the largest) with equal loads: one search, version or
service after another finds it where it was, and a node that comes or goes moves few of them.
"""

import hashlib
from collections import Counter
from collections.abc import Sequence

import numpy as np


def placed(partitions: Sequence[str], hosts: Sequence[str]) -> list[tuple[int, ...]]:
    """The numbers of the partitions that each actor holds: all of them once, as many each as any other or one more.

    partitions: their ids; the earlier ones choose first, so that those that are added move few. hosts: of each actor, in any
    order; several on one are told apart by their number on it.
    """
    seen: Counter[str] = Counter()
    names = []
    for host in hosts:
        names.append(f"{host} {seen[host]}")
        seen[host] += 1
    least, one_more = divmod(len(partitions), len(hosts))
    held: list[list[int]] = [[] for _ in hosts]
    for number, order in enumerate(np.argsort(_liking(partitions, names), axis=1)[:, ::-1].tolist()):
        place = next(place for place in order if len(held[place]) < least + (one_more > 0))
        one_more -= len(held[place]) == least
        held[place].append(number)
    return [tuple(numbers) for numbers in held]


def _liking(partitions: Sequence[str], places: Sequence[str]) -> np.ndarray:
    """A number for each partition at each place, uint64 [p, n], as if by chance: the end of SplitMix64 over both hashes."""
    of_partitions, of_places = (np.array([_hashed(name) for name in names], np.uint64) for names in (partitions, places))
    mixed = of_partitions[:, None] ^ of_places
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        mixed = (mixed ^ (mixed >> np.uint64(shift))) * np.uint64(factor)
    return mixed ^ (mixed >> np.uint64(31))


def _hashed(name: str) -> int:
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "little")
