"""Labelled videos as pixels: the videos of galleries, decoded once into one file, beside the labels that the galleries have."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from pipeline.backbone.spec import BackboneSpec, normalise_pixels
from pipeline.decoding.decoder import Decoder
from pipeline.decoding.video import Chunk, Rejected
from pipeline.errors import PipelineError
from pipeline.ingest.gallery_sampling import gallery_sampling
from pipeline.storage.hashing import json_sha256
from pipeline.storage.local_writes import new_array
from pipeline.storage.location import resolve
from pipeline.training.features import FeatureSet, Source, load_features, split_identities

EMBED_FRAMES = 64  # frames a network call, outside training


@dataclass(frozen=True)
class FrameSet:
    """Labelled videos as pixels.

    labels: without features. frames: uint8 [n, h, w, 3], RGB; rows: int64 [F], where in `frames` each frame of the labels lies.
    """

    labels: FeatureSet
    frames: NDArray[np.uint8]
    rows: NDArray[np.int64]

    def take(self, video_ids: Sequence[str]) -> "FrameSet":
        """The set of these videos."""
        places = {video_id: place for place, video_id in enumerate(self.labels.video_ids)}
        videos = np.array([places[video_id] for video_id in video_ids], np.int64)
        first, frames = self.labels.first_frame, self.labels.frames
        rows = np.concatenate([self.rows[first[v] : first[v] + frames[v]] for v in videos])
        return FrameSet(self.labels.take(videos), self.frames, rows)

    def split(self, share: float) -> tuple["FrameSet", "FrameSet | None"]:
        """(training, validation) as `split_identities` divides people."""
        sides = split_identities(self.labels, share)
        return self.take(sides[0].video_ids), self.take(sides[1].video_ids) if len(sides[1]) else None

    def embedded(self, backbone: nn.Module, spec: BackboneSpec, device: torch.device) -> FeatureSet:
        """The labels with the features float16 that a network gives these frames now."""
        backbone.eval()
        parts = []
        with torch.no_grad():
            for start in range(0, len(self.rows), EMBED_FRAMES):
                pixels = normalise_pixels(self.frames[self.rows[start : start + EMBED_FRAMES]], spec)
                parts.append(backbone(torch.from_numpy(pixels).to(device)).half().cpu().numpy())
        return replace(self.labels, features=np.concatenate(parts))


def cache_frames(
    sources: Sequence[Source], folder: str | Path, height: int, width: int, endpoints: Sequence[str] = ()
) -> FrameSet:
    """Decode the labelled videos of galleries once into folder/frames.npy; a finished cache of the same videos is used again.

    Frames are those that the galleries sampled, resized to height x width pixels; 24 kB a frame of 128 x 64. They are read below
    the galleries' roots, and at no other endpoints than the galleries' and these (`pipeline.storage.reach.Reach`). Raises
    PipelineError when a video gives other frames than when it was ingested.
    """
    folder = Path(folder)
    labels = load_features(sources)
    labels = replace(labels, features=np.empty((len(labels.features), 0), np.float16))
    shape = (int(labels.frames.sum()), height, width, 3)
    rates = [(source.gallery.settings.rate, source.gallery.settings.image_rate) for source in sources]
    places = [(row["uri"], row["boxes_uri"], row["track"]) for source in sources for row in _labelled_rows(source)]
    parts = [labels.video_ids, labels.frames.tolist(), shape, rates, places]
    made_of = json_sha256(parts)
    path, mark = folder / "frames.npy", folder / "frames.sha256"
    if not mark.exists() or mark.read_text() != made_of:
        folder.mkdir(parents=True, exist_ok=True)
        mark.unlink(missing_ok=True)
        frames = new_array(path, np.uint8, shape)
        at = 0
        for source in sources:
            at += _decode_all(source, frames[at:], endpoints)
        frames.flush()
        resolve(mark).write_atomically(made_of.encode())
    return FrameSet(labels, np.load(path, mmap_mode="r", allow_pickle=False), np.arange(shape[0]))


def _labelled_rows(source: Source) -> list[dict[str, Any]]:
    rows = source.gallery.snapshot().videos.sort_by("video_id").to_pylist()
    return [row for row in rows if row["person_id"] is not None]


def _decode_all(source: Source, frames: NDArray[np.uint8], endpoints: Sequence[str]) -> int:
    """Write the frames of a gallery's labelled videos, in the order of their ids, to the front of `frames`; returns how many."""
    reach = source.gallery.reach()
    size, named = {"height": frames.shape[1], "width": frames.shape[2]}, (*reach.endpoints, *endpoints)
    sampling = gallery_sampling(source.gallery, **size, roots=reach.roots, endpoints=named)
    rows = _labelled_rows(source)
    ends = np.cumsum([row["sampled_frames"] for row in rows])
    places = {(row["uri"], row["track"]): end - row["sampled_frames"] for row, end in zip(rows, ends, strict=True)}
    wanted = {(row["uri"], row["track"]): row["sampled_frames"] for row in rows}
    written = dict.fromkeys(places, 0)
    refused: dict[str, str] = {}
    with Decoder(sampling) as decoder:
        for uri, boxes_uri, rate in dict.fromkeys((row["uri"], row["boxes_uri"], row["fps"]) for row in rows):
            for event in decoder.events(uri, boxes_uri, rate):  # a stream without times has the rate that it was ingested at
                if isinstance(event, Chunk) and (uri, event.track) in places:
                    found = written[uri, event.track]
                    fitting = event.frames[: max(wanted[uri, event.track] - found, 0)]
                    frames[places[uri, event.track] + found :][: len(fitting)] = fitting
                    written[uri, event.track] += len(event.frames)
                elif isinstance(event, Rejected):
                    refused[uri] = f": {event.message}"
    for (uri, track), count in wanted.items():
        if written[uri, track] != count:
            raise PipelineError(f"{uri} gave {written[uri, track]} frames and {count} when it was ingested{refused.get(uri, '')}")
    return int(ends[-1]) if len(ends) else 0
