"""The target of a search: a video or image folder decoded now, or a gallery video whose features are there already."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch

from pipeline.backbone import Backbone, find_backbone, load_backbone, same_backbone
from pipeline.candidates import TargetSegments
from pipeline.catalog import default_video_id
from pipeline.cohort import cohort_statistics
from pipeline.decoder import Decoder
from pipeline.errors import PipelineError, UsageError
from pipeline.gallery import Gallery, feature_matrix
from pipeline.index import Index, IndexSettings
from pipeline.results import VideoRef
from pipeline.sampling import Sampling
from pipeline.scoring import encode_target
from pipeline.segments import segment_frames, segment_starts
from pipeline.storage import canonical_uri
from pipeline.video import Piece, Rejected

GALLERY_PREFIX = "id:"


@dataclass(frozen=True)
class Target:
    """A target's sampled frames. features: float16 [n, D]; frame_index: int32 [n]; time_s: float32 [n], seconds."""

    video: VideoRef
    features: np.ndarray
    frame_index: np.ndarray
    time_s: np.ndarray

    def segmented(
        self, index: Index, length: int | None = None, stride: int | None = None, row: int | None = None
    ) -> TargetSegments:
        """Cut into segments of `length` frames, `stride` apart (None: as in the index), encoded and measured by its cohort.

        row: of the target among the index's videos, -1 where it is not there, None to look for it.
        """
        head, frames = index.head, len(self.features)
        length = index.settings.segment_length if length is None else length
        stride = index.settings.stride if stride is None else stride
        IndexSettings(length, stride)  # raises UsageError for sizes that cannot be meant
        rows = segment_frames(segment_starts(frames, length, stride), length, frames)
        encoding = encode_target(head, torch.from_numpy(self.features[rows]))
        statistics = None
        if index.cohort.usable:
            own = torch.full((len(rows),), index.position(self.video.video_id) if row is None else row)
            statistics = cohort_statistics(index.cohort, encoding.encodings, own, encoding.weight, encoding.bias)
        return TargetSegments(encoding, self.frame_index[rows], self.time_s[rows], statistics)


def read_targets(names: list[str], gallery: Gallery, backbone: str | None = None, time_limit: float = 60.0) -> list[Target]:
    """Read targets: paths or uris of videos and image folders, or id:VIDEO_ID for gallery videos.

    backbone: name or path of the gallery's backbone, where it lies elsewhere than when the gallery was made. Raises UsageError
    for a target that does not exist or cannot be used, and for two targets of the same id.
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
            targets.append(video_target(name, gallery, loaded, time_limit))
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
    rows = videos.filter(pc.equal(videos["video_id"], video_id)).to_pylist()
    if not rows:
        raise UsageError(f"{gallery.location.uri} has no video {video_id!r}")
    row = rows[0]
    frames = gallery.read_video(row)
    ref = VideoRef.of(row)
    return Target(ref, feature_matrix(frames), np.asarray(frames["frame_index"]), np.asarray(frames["time_s"]))


def video_target(uri: str, gallery: Gallery, backbone: Backbone, time_limit: float = 60.0) -> Target:
    """A video file or a folder of numbered images as the target, sampled as the gallery is. Raises UsageError."""
    settings, spec = gallery.settings, backbone.spec
    sampling = Sampling(settings.rate, settings.image_rate, spec.height, spec.width, time_limit=time_limit)
    uri = canonical_uri(uri)
    pieces: list[Piece] = []
    features = []
    with Decoder(sampling) as decoder:
        for event in decoder.events(uri):
            if isinstance(event, Rejected):
                raise UsageError(f"the target cannot be used: {event.message}")
            if isinstance(event, Piece):
                pieces.append(event)
                features.append(backbone.embed(event.frames))
    if not pieces:
        raise PipelineError(f"decoding the target {uri} gave no frames")
    ref = VideoRef(default_video_id(uri), uri)
    index, times = (np.concatenate([getattr(piece, name) for piece in pieces]) for name in ("frame_index", "time_s"))
    return Target(ref, np.concatenate(features), index, times)
