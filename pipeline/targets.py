"""The target of a search: a video or image folder decoded now, or a gallery video whose features are there already."""

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.backbone import Backbone, find_backbone, load_backbone, same_backbone
from pipeline.catalog import default_video_id
from pipeline.decoder import Decoder
from pipeline.errors import PipelineError, UsageError
from pipeline.gallery import Gallery, feature_matrix
from pipeline.provenance import source_hash
from pipeline.results import VideoRef
from pipeline.sampling import Sampling
from pipeline.storage import canonical_uri, is_utf8
from pipeline.video import Piece, Rejected, VideoInfo

GALLERY_PREFIX = "id:"


@dataclass(frozen=True)
class Target:
    """A target's sampled frames. features: float16 [n, D]; frame_index: int32 [n]; time_s: float32 [n], seconds.

    content: what was searched for, as "KIND:SHA256": features: of a gallery video's stored frame features (float16, little
    endian, row by row), file: of the bytes that were decoded, images: of a folder's images; None where nobody asks.
    """

    video: VideoRef
    features: np.ndarray
    frame_index: np.ndarray
    time_s: np.ndarray
    content: str | None = None


def target_decoder(gallery: Gallery, time_limit: float = 60.0) -> Decoder:
    """Decodes targets, sampled as the gallery is. time_limit: seconds without progress after which a target is given up."""
    settings, spec = gallery.settings, gallery.settings.backbone
    return Decoder(Sampling(settings.rate, settings.image_rate, spec.height, spec.width, time_limit=time_limit))


def read_targets(names: list[str], gallery: Gallery, decoder: Decoder, backbone: str | None = None) -> list[Target]:
    """Read targets: paths or uris of videos and image folders, or id:VIDEO_ID for gallery videos.

    decoder: see `target_decoder`. backbone: name or path of the gallery's backbone, where it lies elsewhere than when the gallery
    was made. Raises UsageError for a target that does not exist or cannot be used, and for two targets of the same id.
    """
    loaded: Backbone | None = None
    snapshot_videos: pa.Table | None = None
    targets = []
    for name in names:
        if name.startswith(GALLERY_PREFIX):
            snapshot_videos = gallery.snapshot().videos if snapshot_videos is None else snapshot_videos
            targets.append(gallery_target(gallery, name.removeprefix(GALLERY_PREFIX), snapshot_videos))
        else:
            loaded = loaded or gallery_backbone(gallery, backbone)
            targets.append(video_target(name, loaded, decoder))
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
    row = rows[0]
    frames = gallery.read_video(row)
    ref = VideoRef.of(row)
    features = feature_matrix(frames)
    content = hashlib.sha256(np.ascontiguousarray(features.astype("<f2")).tobytes()).hexdigest()
    return Target(ref, features, np.asarray(frames["frame_index"]), np.asarray(frames["time_s"]), f"features:{content}")


def video_target(uri: str, backbone: Backbone, decoder: Decoder) -> Target:
    """A video file or a folder of numbered images as the target. Raises UsageError."""
    uri = canonical_uri(uri)
    pieces: list[Piece] = []
    features, content = [], None
    for event in decoder.events(uri):
        if isinstance(event, Rejected):
            raise UsageError(f"the target cannot be used: {event.message}")
        if isinstance(event, VideoInfo):
            content = event.source_hash
        if isinstance(event, Piece):
            features.append(backbone.embed(event.frames))
            pieces.append(replace(event, frames=event.frames[:0]))
            if not np.isfinite(features[-1]).all():
                raise UsageError(f"the target cannot be used: the backbone gives no finite features for {uri}")
    if not pieces:
        raise PipelineError(f"decoding the target {uri} gave no frames")
    ref = VideoRef(default_video_id(uri), uri)
    index, times = (np.concatenate([getattr(piece, name) for piece in pieces]) for name in ("frame_index", "time_s"))
    return Target(ref, np.concatenate(features), index, times, content or source_hash(uri))
