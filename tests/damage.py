"""Damage to the files of a gallery and its indexes, and what a search and a check then say.

A damaged file is named, by the search or by the check, or changes nothing; the search never gives other leads that the check does
not explain.
"""

import multiprocessing
import random
import re
import traceback
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import PipelineError
from pipeline.gallery.gallery import Gallery, GallerySettings
from pipeline.index.build import build_index
from pipeline.index.versions import open_index
from pipeline.retention.verify import verify_gallery
from pipeline.search.partitions import opened_partitions
from pipeline.search.search import search
from pipeline.search.targets import gallery_target
from pipeline.settings import IndexSettings, SearchSettings
from tests.conftest import add_videos, people_features, toy_spec

Leads = list[tuple[str, float]]


@dataclass(frozen=True)
class Answer:
    """What a gallery gives to who searches it and to who checks it.

    leads: video ids and scores, or None where the search fails; said: with which sentence. faults: what the check says. raised: a
    traceback, where anything else than a PipelineError came out.
    """

    leads: Leads | None = None
    said: str = ""
    faults: tuple[str, ...] = ()
    raised: str = ""


def ask(uri: str) -> Answer:
    """Search a gallery for one of its videos and check it."""
    leads, said, faults = None, "", list[str]()
    try:
        try:
            gallery = Gallery.open(uri)
            index = open_index(gallery)
            with opened_partitions(gallery, index, actors=0) as partitions:
                target = gallery_target(gallery, "v003")
                result = search(gallery, index, partitions, target, SearchSettings(top=100, shortlist=None))
            leads = [(lead.video.video_id, lead.score) for lead in result.leads]
        except PipelineError as error:
            said = str(error)
        try:
            faults = verify_gallery(Gallery.open(uri))
        except PipelineError as error:
            faults = [str(error)]
    except Exception:
        return Answer(leads, said, tuple(faults), traceback.format_exc(limit=-3))
    return Answer(leads, said, tuple(faults))


class Witness:
    """Asks in a process of its own, so that a library that crashes on a damaged file ends only that."""

    def __init__(self) -> None:
        self.pool = self._new_pool()

    def _new_pool(self) -> ProcessPoolExecutor:
        return ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn"))

    def answer(self, uri: str) -> Answer:
        try:
            return self.pool.submit(ask, uri).result(timeout=180)
        except (BrokenProcessPool, TimeoutError) as error:
            for process in self.pool._processes.values():
                process.kill()
            self.pool = self._new_pool()
            return Answer(raised="the process died" if isinstance(error, BrokenProcessPool) else "there was no answer for 180 s")


def damaged(data: bytes, rng: random.Random) -> bytes | None:
    """The content with a bit flipped, a number overwritten, a part cut off or left out; None: the file is gone."""
    kind, at = rng.randrange(8), rng.randrange(len(data))
    if kind == 0:
        return None
    if kind == 1:
        return data[:at]
    if kind == 2:
        return b""
    if kind == 3:
        return data[:at] + data[at + rng.choice((1, 8, 64)) :]
    changed = bytearray(data)
    if kind == 4:
        changed[at : at + 4] = rng.choice((b"\xff\xff\xff\x7f", b"\0\0\0\0", b"\xff" * 4))
    for place in [at, *(rng.randrange(min(len(data), 400)) for _ in range(kind - 5))] if kind > 4 else []:
        changed[place] ^= 1 << rng.randrange(8)
    return bytes(changed)


# Damage met by an error that nothing catches yet, by the end of a file's name: what its traceback holds. The footer of a shard
# has no checksum, and Parquet's reader has faults of its own.
UNCAUGHT = {"frames/.parquet": "the process died"}


def made_up_gallery(folder: Path) -> Gallery:
    """24 made-up videos in shards of 7, with an index of partitions of 9."""
    made = Gallery.open_or_create(folder, GallerySettings(toy_spec(), 10.0, None))
    add_videos(made, people_features(8, 3, 24, seed=1))
    build_index(made, IndexSettings(8, 4, partition_videos=9))
    return made


@dataclass(frozen=True)
class Damage:
    """One damage. kind: the file's folder and name, or suffix where names are random; result: what became of it, in a few words.

    fault: which promise was broken, in words, or "".
    """

    kind: str
    result: str
    fault: str


def try_damage(gallery: Gallery, witness: Witness, count: int, seed: int) -> list[Damage]:
    """Damage the gallery's files in turn, one at a time, and ask after each; all are mended again."""
    uri = gallery.location.path
    sound = witness.answer(uri)
    assert sound.leads and sound.faults == () and sound.raised == ""
    files = sorted((path for path in Path(uri).rglob("*") if path.is_file()), key=lambda path: (_kind(path), path.stat().st_size))
    found = []
    for turn in range(count):
        path = files[turn % len(files)]
        data = path.read_bytes()
        new = damaged(data, random.Random(f"{seed} {turn}"))
        path.unlink() if new is None else path.write_bytes(new)
        answer = witness.answer(uri)
        path.write_bytes(data)
        result, fault = _judged(path, answer, sound)
        found.append(Damage(_kind(path), result, f"{path} (turn {turn} of seed {seed}): {fault}" if fault else ""))
    return found


def _judged(path: Path, answer: Answer, sound: Answer) -> tuple[str, str]:
    checked = any(path.name in fault for fault in answer.faults)
    if answer.raised:
        expected = any(re.search(what, answer.raised) and _kind(path) == name for name, what in UNCAUGHT.items())
        return "stopped by an error that is not caught", "" if expected else answer.raised
    if answer.leads is None:
        return "refused by the search", "" if answer.said else "the search failed without a word"
    if answer.leads != sound.leads:
        return "other leads, named by the check", "" if checked else f"other leads, and the check says {answer.faults}"
    return "same leads, " + ("named by the check" if checked else "seen by nothing"), ""


def _kind(path: Path) -> str:
    """frames/.parquet, index/keys.npy: without the random parts of names."""
    return f"{'index' if 'index' in path.parts else path.parent.name}/{path.suffix if len(path.stem) > 20 else path.name}"
