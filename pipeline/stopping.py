"""How long work is stopped: between two of its pieces it calls what may raise, and what is raised there ends it."""

from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

Piece = TypeVar("Piece")
Between = Callable[[], object]


class StoppedError(Exception):
    """Somebody has ended the work; the words say how."""


CANCELLED = "cancelled"  # in records, of what a person has ended
STOPPED = (StoppedError, KeyboardInterrupt)  # what was not a failure


def going_on() -> None:
    """Between pieces of what nobody stops."""


def stoppable(pieces: Iterable[Piece], between: Between) -> Iterator[Piece]:
    """The pieces one by one; `between` is called before each.

    >>> asked = []
    >>> [piece * 2 for piece in stoppable([1, 2], lambda: asked.append("?"))], asked
    ([2, 4], ['?', '?'])
    """
    for piece in pieces:
        between()
        yield piece
