"""How commands name what was rejected: the first few, each with its reason, and where all of them are."""

from collections.abc import Mapping, Sequence
from typing import Any

SHOWN = 5


def reject_lines(rejects: Sequence[Mapping[str, Any]], count: int, gallery: str) -> list[str]:
    """A line for each of the rejects that are shown (uri, video_id, reason, message), and one for the rest; empty without any.

    >>> reject_lines([{"uri": "/a.mp4", "video_id": "a-1f", "reason": "empty", "message": "/a.mp4 holds no bytes"}], 1, "/g")
    ['    /a.mp4: empty: /a.mp4 holds no bytes']
    """
    lines = [f"    {one['uri'] or one['video_id']}: {one['reason']}: {one['message'] or 'no more is known'}" for one in rejects]
    if rejects and count > len(rejects):
        lines.append(
            f"    and {count - len(rejects)} more; jobs.status --gallery {gallery} --list-rejects FILE writes all of them"
        )
    return lines
