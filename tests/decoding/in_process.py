"""Requests answered in this process, without a child: what decodes can be patched, and its errors are raised."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TypeVar

import numpy as np

from pipeline.decoding.reading import Heartbeat
from pipeline.decoding.requests import FramesRequest, Request, SceneRequest, SourceRequest
from pipeline.decoding.sampling import Sampling
from pipeline.decoding.video import Chunk, Event, Stretch, VideoInfo

EVERY_PICTURE = Sampling(rate=1000)
SHORT = 0.5  # seconds: stretches of one group of pictures
Kind = TypeVar("Kind", bound=Event)


def answered_here(request: Request, sampling: Sampling, heartbeat: Heartbeat = lambda: None) -> Iterator[Event]:
    with request.open(sampling, heartbeat) as opened:
        yield from request.answer(opened, sampling, heartbeat, None)


def read_chunks(uri: str, boxes_uri: str | None, sampling: Sampling, heartbeat: Heartbeat = lambda: None) -> Iterator[Event]:
    return answered_here(SourceRequest(uri, boxes_uri), sampling, heartbeat)


def read_frames(
    uri: str, boxes_uri: str | None, track: int | None, wanted: Mapping[int, float | None], sampling: Sampling
) -> Iterator[Event]:
    return answered_here(FramesRequest(uri, boxes_uri, track, wanted), sampling)


def asked(path: Path, sampling: Sampling = EVERY_PICTURE, **how: float | Stretch) -> list[Event]:
    return list(answered_here(SceneRequest(str(path), **how), sampling))  # type: ignore[arg-type]


def shown(events: list[Event]) -> list[np.ndarray]:
    """Numbers, times and pictures."""
    chunks = [event for event in events if isinstance(event, Chunk)]
    return [np.concatenate([getattr(chunk, name) for chunk in chunks]) for name in ("frame_index", "time_s", "frames")]


def of_type(kind: type[Kind], events: list[Event]) -> list[Kind]:
    return [event for event in events if isinstance(event, kind)]


def in_stretches(
    path: Path, seconds: float = SHORT, sampling: Sampling = EVERY_PICTURE
) -> tuple[list[Event], list[VideoInfo], int]:
    """What the stretches show, what is said of the whole, and how many there are. The last are read first."""
    events = asked(path, sampling, divide_s=seconds)
    stretches = of_type(Stretch, events)
    assert not stretches or not of_type(Chunk, events)
    parts = [asked(path, sampling, stretch=stretch) for stretch in stretches[::-1]]
    return [event for part in parts[::-1] for event in part], of_type(VideoInfo, events), len(stretches)


def is_the_same(path: Path, seconds: float = SHORT, sampling: Sampling = EVERY_PICTURE) -> int:
    """How many stretches there are, which were compared with the whole."""
    parts, said, count = in_stretches(path, seconds, sampling)
    if count:
        whole = asked(path, sampling)
        assert said == of_type(VideoInfo, whole)
        assert all(np.array_equal(one, other) for one, other in zip(shown(whole), shown(parts), strict=True))
    return count
