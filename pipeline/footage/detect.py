"""Recordings -> detections: one process decodes (in its child), finds people, cuts them out and embeds them.

A whole picture goes from the decoder to the detector and nowhere else: only boxes, scores and frame features leave the process,
in a file that is written while the recording is read, so memory does not grow with its length.

A long recording is not read at once but comes back as stretches (`pipeline.decoding.dividing`), each of which is then a row of
its own, for any worker. What is found in one is a *draft*: a file of detections/ that no commit names, called by a hash of all
that it depends on, so that whoever comes to the same stretch again finds it done. `joined` makes one of all of a recording's.
"""

import threading
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline import telemetry
from pipeline.backbone.runtime import load_backbone
from pipeline.decoding.boxes import cropped
from pipeline.decoding.decoder import Decoder
from pipeline.decoding.sampling import Sampling, resize
from pipeline.decoding.video import Chunk, Rejected, Stretch, Undivided, VideoInfo
from pipeline.errors import PipelineError, VideoError
from pipeline.footage.detector import Detections, load_detector
from pipeline.footage.forgotten_people import ForgottenBoxes
from pipeline.footage.recordings import corrected_by
from pipeline.gallery.detections import RECORDINGS_SCHEMA, detections_schema, detections_table
from pipeline.gallery.forgotten import MESSAGE, REASON, Forgotten
from pipeline.gallery.gallery import ROW_GROUP_ROWS, Gallery
from pipeline.ingest.progress import FramesTold
from pipeline.ingest.source_changes import STILL_CHANGING, is_changing
from pipeline.ingest.stages import BAD_FEATURES
from pipeline.storage.hashing import json_sha256

LEAST_SCORE = 0.3  # of a detection that is kept: no track takes a weaker one
CROPS_AT_ONCE = 32  # embedded together
MOST_STRETCHES = 100_000  # of a recording
DRAFTED = 1  # how drafts are made; raise it when the same recordings would give other detections
_KINDS = {int: pa.int64(), float: pa.float64(), str: pa.string(), float | None: pa.float64(), str | None: pa.string()}
STRETCH = pa.struct([(field.name, _KINDS[field.type]) for field in fields(Stretch)])  # type: ignore[index]
# What a worker is asked for beside a row of the plan: a stretch of the recording, else all of it, divided if it is long for that.
ASKED = [pa.field("divide_s", pa.float64()), pa.field("stretch", STRETCH)]
# A row a recording: RECORDINGS_SCHEMA, or why it cannot be used. stretches: what it was divided into, instead of being read;
# undivided: why that could not be, of a long one. With a stretch, of that alone; shard is its draft then.
DETECTED_SCHEMA = pa.schema(
    [
        *RECORDINGS_SCHEMA,
        *(pa.field(name, pa.string()) for name in ("reason", "message", "undivided")),
        pa.field("stretch", STRETCH),
        pa.field("stretches", pa.list_(STRETCH)),
    ]
)
SECONDS = "coattention_ingest_seconds"  # the metric


@dataclass(frozen=True)
class DetectSettings:
    """detector: by name or path (`pipeline.footage.detector.load_detector`). threads: of the CPU, for a network. device: "cpu",
    "cuda" or "auto". recordings: how many one process reads at once, each in a child of its own.
    """

    detector: str
    threads: int = 1
    device: str = "cpu"
    recordings: int = 1


class DetectPeople:
    """An actor: rows of a plan (`pipeline.footage.recordings.Plan`) -> DETECTED_SCHEMA. counter: see `ingest.progress`."""

    def __init__(
        self, gallery: Gallery, sampling: Sampling, settings: DetectSettings, forgotten: Forgotten, boxes: pa.Table, counter: Any
    ) -> None:
        """forgotten, boxes: which recordings, and who in them, are not taken in (`Snapshot.tombstones`, `forgotten_boxes`)."""
        self.gallery, self.sampling, self.told = gallery, sampling, FramesTold(counter)
        self.forgotten, self.people_forgotten = forgotten.content, ForgottenBoxes(boxes)
        self.detector = load_detector(settings.detector, settings.threads, settings.device)
        self.backbone = load_backbone(gallery.settings.backbone, settings.threads, settings.device)
        self.decoders = threading.local()
        self.pool = ThreadPoolExecutor(settings.recordings)  # kept: a decoder's child dies with the thread that started it

    def __call__(self, plan: pa.Table) -> Iterator[pa.Table]:
        for row in self.pool.map(self.detected, plan.to_pylist()):
            yield pa.Table.from_pylist([row], schema=DETECTED_SCHEMA)

    def detected(self, source: dict[str, Any]) -> dict[str, Any]:
        """One recording as a row of DETECTED_SCHEMA, its detections written. Raises PipelineError where no recording is to
        blame.
        """
        if source["reject_reason"] is not None:
            return source | {"reason": source["reject_reason"], "message": source["reject_message"]}
        stretch = Stretch(**source["stretch"]) if source.get("stretch") is not None else None
        draft = self._draft(source, stretch) if stretch is not None else None
        if draft is not None and (there := self._rows_of(draft)) is not None:
            return source | {"shard": draft, "detections": there}
        reading = _Reading(self, source, stretch)
        schema = detections_schema(self.gallery.feature_width)
        try:
            shard = self.gallery.write_tables("detections", schema, reading.tables(), draft)
        except VideoError as error:
            if is_changing(source):
                return source | {"reason": STILL_CHANGING, "message": f"{source['uri']} changes while it is read"}
            return source | {"reason": error.reason, "message": error.message}
        except _IsDividedError:
            shard = None
        if is_changing(source):
            return source | {"reason": STILL_CHANGING, "message": f"{source['uri']} changes while it is read"}
        return source | reading.row() | {"shard": shard}

    def _draft(self, source: dict[str, Any], stretch: Stretch) -> str:
        """The name of the draft of a stretch: a hash of all that is in it."""
        sampling, forgotten = self.sampling, self.people_forgotten.of(stretch.source_hash)
        of_frames = [sampling.rate, sampling.height, sampling.width, sampling.min_box, LEAST_SCORE]
        networks = [self.detector.identity, self.backbone.spec.identity]
        of_all = [DRAFTED, source["source_id"], asdict(stretch), of_frames, networks, forgotten]
        return f"{json_sha256(of_all)[:32]}.parquet"

    def _rows_of(self, draft: str) -> int | None:
        """How many detections a draft has; None where it is not there."""
        with suppress(PipelineError):
            return len(self.gallery.read_detections(draft, ["frame_index"]))
        return None

    def decoder(self) -> Decoder:
        """This thread's own."""
        if not hasattr(self.decoders, "own"):
            self.decoders.own = Decoder(self.sampling)
        return self.decoders.own


def joined(gallery: Gallery, drafts: Iterable[str]) -> str:
    """The drafts of a recording, in the order of its stretches, as one file of detections; returns its name. Raises
    PipelineError.
    """
    tables = (gallery.read_detections(draft) for draft in drafts)
    return gallery.write_tables("detections", detections_schema(gallery.feature_width), (table for table in tables if len(table)))


class _IsDividedError(Exception):
    """The recording is long, and its stretches are known."""


class _Reading:
    """One recording while it is read, or one stretch of it."""

    def __init__(self, people: DetectPeople, source: dict[str, Any], stretch: Stretch | None = None) -> None:
        self.people, self.source, self.stretch = people, source, stretch
        self.info: VideoInfo | None = None
        self.stretches: list[Stretch] = []
        self.undivided: str | None = None
        self.looked_at = self.detections = 0

    def tables(self) -> Iterator[pa.Table]:
        """The detections, a table each thousand or so. Raises VideoError for what spoils the recording, and _IsDividedError."""
        people, source = self.people, self.source
        batch, embedded = _Batch(), list[pa.Table]()
        asked = source["uri"], source["frame_rate"], source.get("divide_s"), self.stretch
        for event in telemetry.timed_items(people.decoder().scenes(*asked), SECONDS, stage="decode"):
            if isinstance(event, Rejected):
                raise VideoError(event.reason, event.message)
            if isinstance(event, VideoInfo):
                self.info = event
            if isinstance(event, Stretch):
                if len(self.stretches) == MOST_STRETCHES:  # only whoever has taken the decoder over says so
                    raise VideoError("decoder_crash", f"the decoder gave an answer that cannot be on {source['uri']}")
                self.stretches.append(event)
            if isinstance(event, Undivided):
                self.undivided = event.why
            if isinstance(event, Chunk | Stretch) and (event.source_hash, None) in people.forgotten:
                raise VideoError(REASON, MESSAGE)
            if not isinstance(event, Chunk):
                continue
            self.looked_at += len(event.frames)
            with telemetry.timed(SECONDS, stage="detect"):
                found = people.detector.detect(event.frames)
            people.told.add(len(event.frames))
            batch.add(event, found, people.sampling, people.people_forgotten)
            if len(batch.crops) >= CROPS_AT_ONCE:
                embedded.append(self._embedded(batch))
                batch = _Batch()
            if sum(map(len, embedded)) >= ROW_GROUP_ROWS:
                yield pa.concat_tables(embedded)
                embedded = []
        if self.info is None:
            raise PipelineError(f"{source['uri']}: its decoder ended without a word")
        if self.stretches:
            raise _IsDividedError
        if batch.crops:
            embedded.append(self._embedded(batch))
        if embedded:
            yield pa.concat_tables(embedded)

    def row(self) -> dict[str, Any]:
        """What is known of the recording once `tables` was read to its end."""
        info, source = self.info, self.source
        assert info is not None  # noqa: S101 - `tables` raises without
        if self.stretch is not None:
            return {"detections": self.detections, "looked_at": self.looked_at}
        of_info = {name: getattr(info, name) for name in ("fps", "source_frames", "width", "height", "last_s", "passed_over")}
        found: dict[str, Any] = {"looked_at": self.looked_at, "detections": self.detections, "ingested_hash": info.source_hash}
        found |= {"remarks": list(info.remarks), "ingested_at": datetime.now(UTC)}
        found |= {"detector": self.people.detector.identity, "backbone": self.people.backbone.spec.identity}
        if source["start_time"] is None and info.created is not None:
            start = corrected_by(datetime.fromtimestamp(info.created, UTC), source["clock_offset"])
            found |= {"start_time": start, "start_from": "file"} if start is not None else {}
        found |= {"undivided": self.undivided, "stretches": [asdict(stretch) for stretch in self.stretches]}
        return of_info | found

    def _embedded(self, batch: "_Batch") -> pa.Table:
        with telemetry.timed(SECONDS, stage="embed"):
            features = self.people.backbone.embed(np.stack(batch.crops))
        if not np.isfinite(features).all():
            raise VideoError("bad_features", BAD_FEATURES)
        self.detections += len(features)
        columns = np.array(batch.frame_index), np.array(batch.time_s), np.array(batch.boxes), np.array(batch.scores)
        return detections_table(self.source["source_id"], *columns, features)


class _Batch:
    """Crops that wait to be embedded, and where they are from."""

    def __init__(self) -> None:
        self.crops: list[np.ndarray] = []
        self.frame_index: list[int] = []
        self.time_s: list[float] = []
        self.boxes: list[np.ndarray] = []
        self.scores: list[float] = []

    def add(self, chunk: Chunk, found: list[Detections], sampling: Sampling, forgotten: ForgottenBoxes) -> None:
        """Take the people of whole pictures: those that are sure and large enough, and were not forgotten."""
        for picture, number, time_s, people in zip(chunk.frames, chunk.frame_index, chunk.time_s, found, strict=True):
            for box, score in zip(people.boxes, people.scores, strict=True):
                crop = cropped(picture, box, sampling.min_box) if score >= LEAST_SCORE else None
                if crop is not None and not forgotten.hold(chunk.source_hash, int(number), box):
                    self.crops.append(resize(crop, sampling.height, sampling.width))
                    self.frame_index.append(int(number))
                    self.time_s.append(float(time_s))
                    self.boxes.append(box)
                    self.scores.append(float(score))
