"""How commands speak of recordings: lengths of time, and what is odd in a camera's files."""

from collections import defaultdict
from collections.abc import Sequence

from pipeline.footage.recordings import Irregularity

SHOWN = 5  # of a kind
_WORDS = {
    "gap": "nothing was recorded",
    "overlap": "seconds stand in two files and are looked at once",
    "clock": "a file begins before the one before it ends: the clock was set back, or two recorders name one camera; all is kept",
    "copy": "the same bytes and start as another file: left out",
    "no start": "when it began is not known (--pattern or a manifest says it): no times, and nobody is followed into other files",
}


def span(seconds: float) -> str:
    """A length of time for people.

    >>> span(42), span(150), span(9000)
    ('42 s', '2.5 min', '2.5 h')
    """
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.1f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def irregularity_lines(found: Sequence[Irregularity]) -> list[str]:
    """What is odd, by kind: how often, and where first."""
    kinds: dict[str, list[Irregularity]] = defaultdict(list)
    for one in found:
        kinds[one.kind].append(one)
    lines = []
    for kind, those in sorted(kinds.items()):
        lines.append(f"  {kind:<12}  {len(those)}: {_WORDS[kind]}")
        for one in those[:SHOWN]:
            when = f"{one.at:%Y-%m-%d %H:%M:%S} UTC, " if one.at is not None else ""
            lines.append(
                f"    {one.camera or 'no camera'}: {when}{span(one.seconds)}, {one.uri}" if one.seconds else f"    {one.uri}"
            )
        lines += [f"    and {len(those) - SHOWN} more"] if len(those) > SHOWN else []
    return lines
