"""Which formats of a file this version reads. A file says the number of its format; those that never said one have number 1.

A reader has OLDEST_FORMAT and FORMAT, the oldest that it reads and the one that this version writes. Entries that an older reader
may leave out do not raise the number; what it would misread does, and tests/fixtures then gets a folder of that release.
"""

import re
from typing import Any

from pipeline.errors import PipelineError


def check_format(what: str, found: Any, oldest: int, newest: int, remedy: str) -> None:
    """Check the format that a file names. Raises PipelineError for one outside oldest..newest, ValueError for what is no number.

    what: the thing and its path, as the sentence begins. remedy: what to do about one that is too old.
    """
    if type(found) is not int:
        raise ValueError(f"its format is {found!r}, which is no whole number")
    if oldest <= found <= newest:
        return
    reads = f"format {newest}" if oldest == newest else f"formats {oldest} to {newest}"
    advice = remedy if found < oldest else "a newer version wrote it, so use that or a later one"
    raise PipelineError(f"{what} has format {found}; this version reads {reads}: {advice}")


def number_of(found: Any, kind: str) -> int:
    """The number in a format such as "co-attention head 1". Raises ValueError for what is not of that kind."""
    if not (match := re.fullmatch(rf"{re.escape(kind)} (\d{{1,9}})", found if isinstance(found, str) else "", re.ASCII)):
        raise ValueError(f'its format is not "{kind} NUMBER"')
    return int(match[1])
