"""Writes the gallery that later releases must go on reading: python -m tests.write_format_fixture FOLDER

Twelve made-up videos of four people, an index of them and what a search finds. Run once by each release that changes a format,
with that release's code; the folder is kept in tests/fixtures. `tests.gallery.test_formats` opens it.
"""

import json
import sys
from pathlib import Path

from pipeline.gallery.gallery import Gallery, GallerySettings
from pipeline.index.build import build_index
from pipeline.index.versions import open_index
from pipeline.search.partitions import opened_partitions
from pipeline.search.search import search
from pipeline.search.targets import gallery_target
from pipeline.settings import IndexSettings, ScoreSettings, SearchSettings
from tests.conftest import add_videos, people_features, threads_of_torch, toy_spec

TARGET = "v000"


def found(gallery: Gallery) -> list[tuple[str, float]]:
    """Ids and scores of the leads for TARGET."""
    index = open_index(gallery)
    with threads_of_torch(1), opened_partitions(gallery, index, actors=0) as partitions:
        settings = SearchSettings(shortlist=None, score=ScoreSettings(0.05))  # the share of the first release
        result = search(gallery, index, partitions, gallery_target(gallery, TARGET), settings)
    return [(lead.video.video_id, round(lead.score, 5)) for lead in result.leads]


def write(folder: Path) -> None:
    gallery = Gallery.open_or_create(folder / "gallery", GallerySettings(toy_spec(16), 10.0, None))
    add_videos(gallery, people_features(4, 3, 16, seed=5))
    build_index(gallery, IndexSettings())
    (folder / "found.json").write_text(json.dumps(found(gallery)))


if __name__ == "__main__":
    write(Path(sys.argv[1]))
