"""Where kinds of recordings are registered: see `tests.recordings.kinds`."""

from collections.abc import Callable
from pathlib import Path

from tests.recordings.files import Recording

Kind = Callable[[Path], Recording]
REGISTERED: dict[str, Kind] = {}


def kind(function: Kind) -> Kind:
    """Register a kind: it gets a path without suffix; its name is the function's, with hyphens."""
    REGISTERED[function.__name__.replace("_", "-")] = function
    return function
