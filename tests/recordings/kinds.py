"""Kinds of recordings as cameras, recorders and cutters write them, and which frames they show at which times.

    python -m benchmarks.recordings --out FOLDER

A kind is a function of KINDS: it writes one small file and says what a reader must find in it. See `tests.recordings.files`.
"""

from tests.recordings import codecs, containers, damage, pictures, recorders, stamps, structures
from tests.recordings.registry import REGISTERED, Kind

__all__ = ["KINDS", "Kind"]

_MODULES = (codecs, containers, structures, stamps, pictures, damage, recorders)
KINDS: dict[str, Kind] = {
    name: made for module in _MODULES for name, made in REGISTERED.items() if made.__module__ == module.__name__
}
