"""The files of an audit log, for tests."""

from pathlib import Path

from pipeline.gallery.audit import append_record
from pipeline.gallery.gallery import Gallery


def files(gallery: Gallery) -> list[Path]:
    return sorted(Path(gallery.location.path, "audit").glob("0*.json"))


def append_many(gallery: Gallery, writer: int, count: int) -> None:
    for number in range(count):
        append_record(gallery, "search", {"writer": writer, "number_of_writer": number})
