"""Independent random streams, so that one thing's randomness never depends on how many others were drawn."""

from collections.abc import Mapping
from typing import TypeVar
from zlib import crc32

import numpy as np

Choice = TypeVar("Choice")


def stream(subject: str, *numbers: int) -> np.random.Generator:
    """The generator for one subject and its numbers, e.g. stream("appearance", seed, person).

    The numbers may be any integers; negative ones are folded into 64 bits.
    """
    return np.random.default_rng([crc32(subject.encode()), *(int(number) & 0xFFFFFFFFFFFFFFFF for number in numbers)])


def choose(rng: np.random.Generator, weighted: Mapping[Choice, float]) -> Choice:
    """One key of `weighted`, drawn in proportion to its value."""
    weights = np.array(list(weighted.values()))
    return list(weighted)[int(rng.choice(len(weights), p=weights / weights.sum()))]
