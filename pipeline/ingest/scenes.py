"""Whole pictures that are taken for videos of one person: a camera's recordings that were given without a detector or boxes.

Nothing fails on them. Each becomes one candidate that shows everybody and the street, and no search finds anybody in it. That is
seen of a few inputs before an ingest begins (`scenes_among`), and said of all at its end (`whole_scenes`).
"""

from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.decoding.decoder import Decoder
from pipeline.decoding.requests import StillRequest
from pipeline.decoding.sampling import SCENE_PIXELS, Sampling, looks_like_a_scene
from pipeline.decoding.video import ClipStart
from pipeline.gallery.state import Snapshot
from pipeline.ingest.listing import of_sources

LOOKED_AT = 8  # inputs, of each the first picture: a second or two in all
DRAWN = 256  # of which these are the first that the gallery does not have: of millions no list is made for a word of warning
LOOKED_AT_IN_BUCKETS = 2  # there, an object is fetched whole for it
MOST_BYTES = 1 << 30  # of such an object
SMALL = (64, 64)  # pixels of the picture that is handed over; only its size is asked for


@dataclass(frozen=True)
class Scenes:
    """Of some inputs, how many could be looked at, and what those are called that look like whole scenes: uri and size."""

    looked_at: int = 0
    uris: tuple[str, ...] = ()


def scenes_among(catalog: pa.Table, sampling: Sampling, there: Snapshot) -> Scenes:
    """Look at the first picture of a few inputs without boxes, spread over all of them.

    catalog: SOURCE_SCHEMA. there: what the gallery has, which is left out. What cannot be read says nothing: the ingest rejects
    it. Raises PipelineError where the decoder itself is at fault.
    """
    of_one = pc.and_(pc.is_null(catalog["boxes_uri"]), pc.is_null(catalog["reject_reason"]))
    drawn = catalog.take(pa.array(_spread(np.flatnonzero(np.asarray(of_one)), DRAWN)))
    finished = of_sources(there, drawn).finished_sources()
    rows = _spread(np.flatnonzero([one not in finished for one in drawn["source_id"].to_pylist()]), LOOKED_AT)
    looked_at, found, in_buckets = 0, list[str](), 0
    with Decoder(sampling) as decoder, Decoder(replace(sampling, max_bytes=min(sampling.max_bytes, MOST_BYTES))) as fetching:
        for row in drawn.take(pa.array(rows)).to_pylist():
            is_local = row["uri"].startswith("/")
            in_buckets += not is_local
            if not is_local and in_buckets > LOOKED_AT_IN_BUCKETS:
                continue
            size = _size(decoder if is_local else fetching, row["uri"], row["frame_rate"])
            looked_at += size is not None
            if size is not None and looks_like_a_scene(*size):
                found.append(f"{row['uri']} ({size[1]} x {size[0]})")
    return Scenes(looked_at, tuple(found))


def _spread(places: np.ndarray, count: int) -> np.ndarray:
    """At most so many of some places, int64 [n], spread over all of them."""
    return places[np.unique(np.linspace(0, len(places) - 1, count).astype(int))] if len(places) else places


def _size(decoder: Decoder, uri: str, frame_rate: float | None) -> tuple[int, int] | None:
    """Height and width of a source's first picture, None where there is none to be had."""
    events = list(decoder.answers(StillRequest(uri, 0, frame_rate=frame_rate, fits=SMALL)))  # all: else the child is made anew
    return next(((event.source_height, event.source_width) for event in events if isinstance(event, ClipStart)), None)


def whole_scenes(videos: pa.Table, shown: int, source_ids: pa.Array | None = None) -> tuple[int, tuple[str, ...]]:
    """How many videos (VIDEOS_SCHEMA) without boxes look like whole scenes, and the uris of so many of them. source_ids: of these
    sources only.
    """
    width, height = videos["width"], videos["height"]
    large = pc.greater_equal(pc.multiply(width.cast(pa.int64()), height), SCENE_PIXELS)
    found = pc.and_(pc.is_null(videos["track"]), pc.and_(pc.greater_equal(width, height), large))
    if source_ids is not None:
        found = pc.and_(found, pc.is_in(videos["source_id"], source_ids))
    uris = videos["uri"].filter(pc.fill_null(found, False))
    return len(uris), tuple(uris.slice(0, shown).to_pylist())
