"""Requests answered in this process, without a child: what decodes can be patched, and its errors are raised."""

from collections.abc import Iterator, Mapping

from pipeline.decoding.reading import Heartbeat
from pipeline.decoding.requests import FramesRequest, Request, SourceRequest
from pipeline.decoding.sampling import Sampling
from pipeline.decoding.video import Event


def answered_here(request: Request, sampling: Sampling, heartbeat: Heartbeat = lambda: None) -> Iterator[Event]:
    with request.open(sampling, heartbeat) as opened:
        yield from request.answer(opened, sampling, heartbeat, None)


def read_chunks(uri: str, boxes_uri: str | None, sampling: Sampling, heartbeat: Heartbeat = lambda: None) -> Iterator[Event]:
    return answered_here(SourceRequest(uri, boxes_uri), sampling, heartbeat)


def read_frames(
    uri: str, boxes_uri: str | None, track: int | None, wanted: Mapping[int, float | None], sampling: Sampling
) -> Iterator[Event]:
    return answered_here(FramesRequest(uri, boxes_uri, track, wanted), sampling)
