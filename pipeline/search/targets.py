"""The target of a search: a video, a photo or an image folder decoded now, or a gallery video whose features are there."""

import math
import posixpath
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.backbone.runtime import Backbone, load_backbone
from pipeline.backbone.spec import find_backbone, same_backbone
from pipeline.catalog.image_folders import IMAGE_SUFFIXES
from pipeline.catalog.inputs import candidate_id, default_video_id
from pipeline.decoding.decoder import Decoder
from pipeline.decoding.source_hash import source_hash
from pipeline.decoding.video import Box, Chunk, Event, Rejected, VideoInfo
from pipeline.errors import PipelineError, UsageError
from pipeline.gallery.gallery import Gallery, feature_matrix
from pipeline.gallery.video_ref import VideoRef
from pipeline.ingest.gallery_sampling import gallery_sampling
from pipeline.stopping import Between, going_on, stoppable
from pipeline.storage.hashing import sha256
from pipeline.storage.uris import canonical_uri, is_utf8

GALLERY_PREFIX = "id:"


@dataclass(frozen=True)
class Target:
    """A target's sampled frames. features: float16 [n, D]; frame_index: int32 [n]; time_s: float32 [n], seconds.

    content: what was searched for, as "KIND:SHA256": features: of a gallery video's stored frame features (float16, little
    endian, row by row), file: of the bytes that were decoded, images: of a folder's images; None where nobody asks. remarks: what
    was guessed or passed over in reading it, a sentence each.
    """

    video: VideoRef
    features: np.ndarray
    frame_index: np.ndarray
    time_s: np.ndarray
    content: str | None = None
    remarks: tuple[str, ...] = ()


@dataclass(frozen=True)
class Whom:
    """Who in the pictures of a target is meant, where that is not whoever they show.

    box: (x, y, w, h) in pixels, at time_s, seconds from the start of the video. boxes_uri: a boxes file of the target, of which
    track is meant, or None for the only one. whole_picture: take a picture of a scene as it is. camera: that filmed a target from
    outside the gallery, as the gallery names it.
    """

    box: Box | None = None
    time_s: float | None = None
    boxes_uri: str | None = None
    track: int | None = None
    whole_picture: bool = False
    camera: str | None = None

    def __post_init__(self) -> None:
        if self.box is not None and self.boxes_uri is not None:
            raise UsageError("a target is told by a box or by a boxes file, not by both")
        if self.time_s is not None and self.box is None:
            raise UsageError("a time within a target goes with a box (--box x,y,w,h --at SECONDS)")
        if self.track is not None and self.boxes_uri is None:
            raise UsageError("a track goes with a boxes file (--boxes FILE --track ID)")
        if self.time_s is not None and not 0 <= self.time_s < math.inf:
            raise UsageError(f"the time of a box is in seconds from the video's start, not {self.time_s:g}")

    @property
    def told(self) -> bool:
        return self.box is not None or self.boxes_uri is not None


def target_decoder(
    gallery: Gallery,
    time_limit: float = 60.0,
    scenes: bool = False,
    frame_rate: float | None = None,
    endpoints: Sequence[str] = (),
) -> Decoder:
    """Decodes targets, sampled as the gallery is.

    time_limit: seconds without progress after which a target is given up. scenes: whether pictures of whole scenes are taken.
    frame_rate: see `Sampling`. endpoints: what targets may name besides the gallery's, see `pipeline.storage.reach.Reach`; a
    gallery's roots bind its rows, not the targets that somebody names.
    """
    named = (*gallery.reach().endpoints, *endpoints)
    return Decoder(gallery_sampling(gallery, frame_rate=frame_rate, time_limit=time_limit, scenes=scenes, endpoints=named))


def read_targets(
    names: list[str],
    gallery: Gallery,
    decoder: Decoder,
    backbone: str | None = None,
    whom: Whom | Sequence[Whom] | None = None,
    between: Between = going_on,
) -> list[Target]:
    """Read targets: paths or uris of videos, photos and image folders, or id:VIDEO_ID for gallery videos.

    decoder: see `target_decoder`. backbone: name or path of the gallery's backbone, where it lies elsewhere than when the gallery
    was made. whom: who is meant, of a single target, or of each. between: called between targets, and between pieces of one that
    is decoded. Raises UsageError for a target that does not exist or cannot be used, and for two targets of the same id.
    """
    of_each = [whom or Whom()] * len(names) if isinstance(whom, Whom | None) else whom
    for name, one in zip(names, of_each, strict=True):
        if one.told and ((isinstance(whom, Whom) and len(names) != 1) or name.startswith(GALLERY_PREFIX)):
            raise UsageError("a box or a boxes file goes with one target, a video or a photo")
    loaded: Backbone | None = None
    snapshot_videos: pa.Table | None = None
    targets = []
    for name, one in stoppable(list(zip(names, of_each, strict=True)), between):
        if name.startswith(GALLERY_PREFIX):
            snapshot_videos = gallery.snapshot().videos if snapshot_videos is None else snapshot_videos
            targets.append(gallery_target(gallery, name.removeprefix(GALLERY_PREFIX), snapshot_videos))
        else:
            loaded = loaded or gallery_backbone(gallery, backbone)
            target = video_target(name, loaded, decoder, one, between)
            targets.append(replace(target, video=replace(target.video, camera_id=one.camera)))
    ids = [target.video.video_id for target in targets]
    if len(set(ids)) < len(ids):
        raise UsageError(f"the target {next(i for i in ids if ids.count(i) > 1)} is given twice")
    return targets


def gallery_backbone(gallery: Gallery, name_or_path: str | None = None) -> Backbone:
    """The backbone that a gallery's features come from, loaded. Raises UsageError when another one is named."""
    spec = gallery.settings.backbone
    if name_or_path is None and spec.path is not None and not Path(spec.path).is_file():
        raise UsageError(f"the gallery's backbone {spec.name} is not at {spec.path}; say where it is with --backbone")
    if name_or_path is not None:
        found = find_backbone(name_or_path, (spec.height, spec.width))
        if not same_backbone(found.identity, spec.identity):
            raise UsageError(f"the gallery was made with the backbone {spec.identity}, not with {found.identity}")
        spec = found
    return load_backbone(spec)


def gallery_target(gallery: Gallery, video_id: str, videos: pa.Table | None = None) -> Target:
    """A video of the gallery as the target, from its stored features. Raises UsageError when it is not there.

    videos: of a snapshot of the gallery, where there is one already.
    """
    videos = gallery.snapshot().videos if videos is None else videos
    rows = videos.filter(pc.equal(videos["video_id"], video_id)).to_pylist() if is_utf8(video_id) else []
    if not rows:
        raise UsageError(f"{gallery.location.uri} has no video {video_id!r}")
    return stored_target(rows[0], gallery.read_video(rows[0]))


def stored_target(row: Mapping[str, Any], frames: pa.Table) -> Target:
    """A video of a gallery as the target, from its row and its frames (`pipeline.gallery.gallery.frames_schema`)."""
    features = feature_matrix(frames)
    content = sha256(features.astype("<f2").tobytes())
    return Target(
        VideoRef.of(row), features, np.asarray(frames["frame_index"]), np.asarray(frames["time_s"]), f"features:{content}"
    )


def video_target(uri: str, backbone: Backbone, decoder: Decoder, whom: Whom | None = None, between: Between = going_on) -> Target:
    """A video file, a photo or a folder of numbered images as the target. Raises UsageError."""
    uri, whom = canonical_uri(uri), whom or Whom()
    chunks: list[Chunk] = []
    features, info = [], None
    for event in stoppable(_events(uri, decoder, whom), between):
        if isinstance(event, Rejected) and (event.track is None or event.track == whom.track):
            raise UsageError(f"the target cannot be used: {event.message}{_remedy(event)}")
        if isinstance(event, VideoInfo):
            info = event
        if isinstance(event, Chunk) and whom.track in (None, event.track):
            if chunks and event.track != chunks[0].track:
                raise UsageError(f"{whom.boxes_uri} has several tracks; say which one is meant with --track")
            features.append(backbone.embed(event.frames))
            chunks.append(replace(event, frames=event.frames[:0]))
            if not np.isfinite(features[-1]).all():
                raise UsageError(f"the target cannot be used: the backbone gives no finite features for {uri}")
    if whom.boxes_uri is not None and not chunks:
        raise UsageError(f"{whom.boxes_uri} has no track {whom.track} that can be used")
    if not chunks or info is None:
        raise PipelineError(f"decoding the target {uri} gave no frames")
    index, times = (np.concatenate([getattr(chunk, name) for chunk in chunks]) for name in ("frame_index", "time_s"))
    remarks = [*info.remarks, *([f"{info.passed_over} packets cannot be decoded"] if info.passed_over else [])]
    content = info.source_hash or source_hash(uri)
    return Target(_reference(uri, whom, chunks[0]), np.concatenate(features), index, times, content, tuple(remarks))


def _events(uri: str, decoder: Decoder, whom: Whom) -> Iterator[Event]:
    if whom.box is None:
        yield from decoder.events(uri, whom.boxes_uri and canonical_uri(whom.boxes_uri))
        return
    photo = posixpath.splitext(uri)[1].lower() in IMAGE_SUFFIXES
    if whom.time_s is None and not photo:
        raise UsageError("say when the box shows the person: --at SECONDS from the start of the video")
    yield from decoder.moment(uri, whom.box, whom.time_s or 0.0)


def _reference(uri: str, whom: Whom, piece: Chunk) -> VideoRef:
    video_id = default_video_id(uri)
    if whom.box is not None:
        edges = ",".join(f"{edge:g}" for edge in whom.box)
        return VideoRef(f"{video_id}@{edges},{piece.time_s[0]:g}", uri, box=whom.box)
    if piece.track is not None and whom.boxes_uri is not None:
        return VideoRef(candidate_id(video_id, piece.track), uri, boxes_uri=canonical_uri(whom.boxes_uri), track=piece.track)
    return VideoRef(video_id, uri)


def _remedy(event: Rejected) -> str:
    if event.reason != "scene":
        return ""
    return "; say who is meant with --box x,y,w,h --at SECONDS or --boxes FILE, or give --whole-picture"
