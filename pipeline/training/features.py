"""Labelled videos with their frame features in memory, from one gallery or several, and the split by identity."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline.errors import UsageError
from pipeline.evaluation.metrics import left_out
from pipeline.gallery.gallery import Gallery, feature_matrix
from pipeline.storage.hashing import hash_number

SAME_FRAME = 0.999  # cosine of one frame's features in two versions of a clip, above which nothing covers it in either


@dataclass(frozen=True)
class FeatureSet:
    """V videos of labelled people, F frames in all.

    features: float16 [F, D]. first_frame, frames: int64 [V], where a video's frames begin and how many they are.
    person, camera, clip: int64 [V], numbers; camera -1 is unknown; versions of one clip (clean, hidden) share its number.
    hidden_version: bool [V], the video is the hidden version of its clip. hidden: bool [F], the person is known to be hidden in
    the frame; None where nothing is known. video_ids: [V]; person_names: what `person` counts, "network/person_id".
    """

    features: NDArray[np.float16]
    first_frame: NDArray[np.int64]
    frames: NDArray[np.int64]
    person: NDArray[np.int64]
    camera: NDArray[np.int64]
    clip: NDArray[np.int64]
    hidden_version: NDArray[np.bool_]
    hidden: NDArray[np.bool_] | None
    video_ids: tuple[str, ...]
    person_names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.frames)

    @property
    def width(self) -> int:
        return self.features.shape[1]

    def of_video(self, video: int) -> NDArray[np.float16]:
        """The features of one video, float16 [n, D]."""
        return self.features[self.first_frame[video] : self.first_frame[video] + self.frames[video]]

    def take(self, videos: NDArray[np.int64]) -> "FeatureSet":
        """The set of these videos (positions), in this order; numbers of people, cameras and clips stay."""
        lengths = self.frames[videos]
        rows = np.concatenate([np.arange(self.frames[v]) + self.first_frame[v] for v in videos] or [np.empty(0, np.int64)])
        return replace(
            self,
            features=self.features[rows],
            first_frame=np.cumsum(lengths) - lengths,
            frames=lengths,
            person=self.person[videos],
            camera=self.camera[videos],
            clip=self.clip[videos],
            hidden_version=self.hidden_version[videos],
            hidden=None if self.hidden is None else self.hidden[rows],
            video_ids=tuple(self.video_ids[v] for v in videos),
        )

    def counts(self, query: NDArray[np.int64], candidate: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Whether pairs of videos count in an evaluation or a loss; positions that broadcast.

        Left out are a clip against itself and `pipeline.evaluation.metrics.left_out`.
        """
        same = self.person[query] == self.person[candidate]
        return ~left_out(same, self.camera[query], self.camera[candidate]) & (self.clip[query] != self.clip[candidate])


@dataclass(frozen=True)
class Source:
    """A gallery to learn from, by uri.

    network: camera network that its person and video ids belong to; galleries of one network show the same people. hidden: its
    videos are the hidden versions of clips whose clean version has the same id in another gallery of the network.
    """

    uri: str
    network: str = ""
    hidden: bool = False

    @cached_property
    def gallery(self) -> Gallery:
        """The gallery, opened. Raises as `Gallery.open`."""
        return Gallery.open(self.uri)


def load_features(sources: Sequence[Source]) -> FeatureSet:
    """All videos with a person_id of one or several galleries, in the order of their ids.

    Where a hidden version has as many frames as its clean one, the frames whose features differ are known to be hidden. Memory: 2
    bytes a number, so 100,000 frames of width 512 are 100 MB. Raises UsageError for galleries of different backbones and when no
    video has a label.
    """
    backbones = {source.gallery.settings.backbone.identity for source in sources}
    if len(backbones) > 1:
        raise UsageError(f"features of different backbones do not compare: {', '.join(sorted(backbones))}")
    parts: list[np.ndarray] = []
    rows: list[dict] = []
    for source in sources:
        videos = source.gallery.snapshot().videos
        videos = videos.filter(pc.is_valid(videos["person_id"])).sort_by("video_id")
        parts += _features_of(source.gallery, videos)
        rows += [row | {"network": source.network, "hidden": source.hidden} for row in videos.to_pylist()]
    if not parts:
        raise UsageError("no video has a person_id, so there is nothing to learn from")
    person, person_names = _numbered(rows, "person_id")
    clip, clip_names = _numbered(rows, "video_id")
    frames = np.array([row["sampled_frames"] for row in rows], np.int64)
    loaded = FeatureSet(
        features=np.concatenate(parts),
        first_frame=np.cumsum(frames) - frames,
        frames=frames,
        person=person,
        camera=_numbered(rows, "camera_id")[0],
        clip=clip,
        hidden_version=np.array([row["hidden"] for row in rows]),
        hidden=None,
        video_ids=tuple(clip_names[number] + "#hidden" * row["hidden"] for number, row in zip(clip, rows, strict=True)),
        person_names=tuple(person_names),
    )
    return replace(loaded, hidden=_hidden_frames(loaded))


def _numbered(rows: list[dict], column: str) -> tuple[NDArray[np.int64], list[str]]:
    """(number of each row, -1 without a value; what the numbers stand for, "network/value") in the order of appearance."""
    names = [None if row[column] is None else f"{row['network']}/{row[column]}" for row in rows]
    encoded = pa.array(names, pa.string()).dictionary_encode()
    return encoded.indices.fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int64), encoded.dictionary.to_pylist()


def _features_of(gallery: Gallery, videos: "pc.Table") -> list[np.ndarray]:
    """Features float16 [n, D] of each video, in the order of `videos`."""
    parts: list[np.ndarray] = [np.empty(0)] * len(videos)
    for position, frames in gallery.iter_videos(videos):
        parts[position] = feature_matrix(frames)
    return parts


def _hidden_frames(videos: FeatureSet) -> NDArray[np.bool_] | None:
    """Frames bool [F] of hidden versions that differ from the clean version of their clip; None without hidden versions."""
    if not videos.hidden_version.any():
        return None
    hidden = np.zeros(len(videos.features), bool)
    clean = {int(videos.clip[v]): v for v in np.flatnonzero(~videos.hidden_version).tolist()}
    for video in np.flatnonzero(videos.hidden_version).tolist():
        twin = clean.get(int(videos.clip[video]))
        if twin is None or videos.frames[twin] != videos.frames[video]:
            continue
        covered, clear = (videos.of_video(v).astype(np.float32) for v in (video, twin))
        lengths = np.linalg.norm(covered, axis=1) * np.linalg.norm(clear, axis=1)
        cosine = (covered * clear).sum(axis=1) / np.maximum(lengths, 1e-12)
        hidden[videos.first_frame[video] : videos.first_frame[video] + videos.frames[video]] = cosine < SAME_FRAME
    return hidden


def split_identities(videos: FeatureSet, share: float = 0.2) -> tuple[FeatureSet, FeatureSet]:
    """(training, validation) without a person in common; about `share` of the people validate.

    A person's side follows from a hash of the name alone, so it stays when data is added. Raises UsageError for a share outside
    0..1 (1 excluded) and when a side is left without two people that can be matched across clips.
    """
    if not 0 <= share < 1:
        raise UsageError(f"the validation share of the people is from 0 to below 1, not {share}")
    validates = np.array([is_held_out(name, share) for name in videos.person_names])[videos.person]
    sides = videos.take(np.flatnonzero(~validates)), videos.take(np.flatnonzero(validates))
    for name, side in zip(("training", "validation"), sides, strict=True):
        if (name == "training" or share > 0) and len(matched_people(side)) < 2:
            raise UsageError(
                f"the {name} side has {len(matched_people(side))} people with two clips under different cameras and needs 2: "
                "give more people or another validation share"
            )
    return sides


def is_held_out(name: str | None, share: float) -> bool:
    """Whether all videos of a person are kept from learning: the name alone decides, so it holds for every set and for ever.

    name: None for people without a label, who never are. share: of the people, 0..1.
    """
    return name is not None and hash_number(name) < share * 2**64


def matched_people(videos: FeatureSet) -> NDArray[np.int64]:
    """People of whom at least one pair of videos counts, ascending."""
    found = []
    for person in np.unique(videos.person):
        own = np.flatnonzero(videos.person == person)
        if videos.counts(own[:, None], own[None]).any():
            found.append(int(person))
    return np.array(found, np.int64)
