"""What every data set of the field becomes: a catalog with labels, and who is asked for among whom."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from pipeline.catalog.inputs import Catalog, source_table
from pipeline.errors import UsageError
from pipeline.storage.location import Location
from pipeline.storage.reach import Reach


@dataclass(frozen=True)
class LabelledData:
    """Labelled videos and a protocol over them.

    name: shown to people ("MARS test, official protocol"). catalog: what `pipeline.ingest.run.ingest` takes, only the videos that
    take part, person_id and camera_id filled. queries: video ids; None: every labelled video. gallery: ids of the videos that a
    query is ranked against, distractors included; None: all videos. A query in the gallery is not ranked against itself, and
    the same person under the same camera is left out: that is the evaluation's work. notes: sentences that a person must know.
    """

    name: str
    catalog: Catalog
    queries: tuple[str, ...] | None
    gallery: frozenset[str] | None
    notes: tuple[str, ...]


@dataclass(frozen=True)
class LabelledVideo:
    """One tracklet. uri: canonical, a folder of images or an image pattern."""

    video_id: str
    uri: str
    person_id: str
    camera_id: str


def labelled_data(
    name: str,
    root: Location,
    videos: Sequence[LabelledVideo],
    queries: Sequence[str] | None = None,
    gallery: Sequence[str] | None = None,
    notes: Sequence[str] = (),
) -> LabelledData:
    """LabelledData of these videos; a note says how many queries and gallery videos there are, and queries without a match.

    Raises UsageError when there is no video or two have the same id.
    """
    if not videos:
        raise UsageError(f"{root.uri} has no videos for {name}")
    ids = [video.video_id for video in videos]
    if len(set(ids)) < len(ids):
        raise UsageError(f"{root.uri} has several videos named {next(i for i in ids if ids.count(i) > 1)}")
    table = source_table(
        [video.uri for video in videos],
        ["images"] * len(videos),
        source_id=ids,
        person_id=[video.person_id for video in videos],
        camera_id=[video.camera_id for video in videos],
    )
    data = LabelledData(
        name,
        Catalog(table.sort_by("source_id"), root.uri, reach=Reach.of(root.uri)),
        None if queries is None else tuple(queries),
        None if gallery is None else frozenset(gallery),
        (),
    )
    return replace(data, notes=(describe(data), *notes))


def describe(data: LabelledData) -> str:
    """The counts as one sentence: videos, queries, their people, gallery, and the queries that no gallery video can answer."""
    table = data.catalog.table
    person = dict(zip(table["source_id"].to_pylist(), table["person_id"].to_pylist(), strict=True))
    queries = [v for v, label in person.items() if label is not None] if data.queries is None else data.queries
    gallery = sum(label is not None for label in person.values()) if data.gallery is None else len(data.gallery)
    return (
        f"{len(person)} videos; {len(queries)} queries, of {len({person[v] for v in queries})} people, against {gallery} gallery "
        f"videos; {len(queries_without_match(data))} queries without a match under another camera"
    )


def queries_without_match(data: LabelledData) -> list[str]:
    """Queries whose person is on no other gallery video of another camera: they cannot be scored, only counted.

    A camera that is not known is another one than any (see `pipeline.evaluation.judged_pairs.judged_pairs`).
    """
    columns = (data.catalog.table[name].to_pylist() for name in ("source_id", "person_id", "camera_id"))
    labels = {video_id: (person, camera) for video_id, person, camera in zip(*columns, strict=True)}
    of_person: dict[str | None, list[str]] = {}
    for video_id in labels if data.gallery is None else data.gallery:
        of_person.setdefault(labels[video_id][0], []).append(video_id)
    queries = [v for v, (person, _) in labels.items() if person is not None] if data.queries is None else data.queries

    def answers(query: str, video_id: str) -> bool:
        camera = labels[query][1]
        return video_id != query and (camera is None or camera != labels[video_id][1])

    return [query for query in queries if not any(answers(query, v) for v in of_person.get(labels[query][0], ()))]
