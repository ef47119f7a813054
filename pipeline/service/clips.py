"""Clips of a gallery's videos: made in decoder processes of their own, read while they are made, and kept on disk for a while."""

import bisect
import contextlib
import os
import secrets
import shutil
import tempfile
import threading
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc

from pipeline.decoding.decoder import Decoder
from pipeline.decoding.requests import ClipRequest, TrackRequest
from pipeline.decoding.video import Box, ClipPart, ClipStart, Rejected, TrackBoxes
from pipeline.errors import PipelineError, UsageError, VideoError
from pipeline.gallery.clip_cache import cache_root, clip_folder
from pipeline.gallery.gallery import Gallery
from pipeline.ingest.gallery_sampling import gallery_sampling
from pipeline.service.searches import BusyError
from pipeline.storage.hashing import sha256
from pipeline.storage.location import Reach

LONGEST_S = 60.0
VERSION = 1  # of how clips are made; another one makes them anew
CACHE_BYTES = 2 << 30  # of a gallery; the least recently used go first
AT_ONCE = 2  # that are made, each in a decoder process
WAITING = 32  # clips that wait to be made, of all people
KEPT_PLACES = 500  # videos of which it is known where they are in their sources
LIMITS: dict[str, Any] = {"time_limit": 20.0, "cpu_limit": 120.0, "memory_limit": 1 << 30}  # of making one clip, see `Sampling`
READ_BYTES = 256 << 10
WAIT_SECONDS = 0.5  # between two looks at whether somebody still waits


@dataclass(frozen=True)
class Part:
    """What of a video is in one file. first_s: of the video's time, from which on it is this file; offset_s: of the video's time
    over the file's; frame_rate: of streams without times.
    """

    uri: str
    first_s: float
    offset_s: float
    frame_rate: float | None = None


@dataclass(frozen=True)
class Places:
    """Where a video is in its sources, in seconds of its own time. first_s, last_s: of whom it shows.

    boxes: (seconds, box in pixels of the picture), ascending; none where whole pictures show the person.
    """

    parts: tuple[Part, ...]
    boxes: tuple[tuple[float, Box], ...]
    first_s: float
    last_s: float

    def span(self, start: float | None, end: float | None) -> tuple[float, float]:
        """A stretch to be shown, by default all of it up to LONGEST_S. Raises UsageError for one that is none or too long."""
        start = max(0.0, self.first_s) if start is None else start
        end = min(max(self.last_s, start) + 0.5, start + LONGEST_S) if end is None else end
        if not 0 <= start < end:
            raise UsageError(f"a clip ends after it starts, and starts at 0 seconds or later, not {start:g} to {end:g}")
        if end - start > LONGEST_S:
            raise UsageError(f"a clip is at most {LONGEST_S:g} seconds long, not {end - start:g}")
        return start, end

    def near(self, start: float, end: float) -> tuple[tuple[float, Box], ...]:
        """The boxes of a stretch with one before and one behind it; the nearest one where there are none."""
        times = [time for time, _ in self.boxes]
        first, last = bisect.bisect_left(times, start), bisect.bisect_right(times, end)
        return self.boxes[max(0, min(first, len(times)) - 1) : last + 1]

    def request(self, start: float, end: float, crop: bool) -> ClipRequest:
        """What is asked of the decoder: the file that shows the start, up to its end where the video goes on in another."""
        part = next((one for one in reversed(self.parts) if one.first_s <= start), self.parts[0])
        boxes = self.near(start, end) if crop else ()
        moved = tuple((time - part.offset_s, box) for time, box in boxes)
        return ClipRequest(part.uri, max(0.0, start - part.offset_s), end - part.offset_s, moved, part.frame_rate)


@dataclass
class Clip:
    """A clip that is made or was: read it by `blocks`. codec: as browsers call it, once there are bytes."""

    path: Path
    codec: str = ""
    size: int = 0
    done: bool = False
    error: PipelineError | VideoError | None = None
    readers: int = 0
    changed: threading.Condition = field(default_factory=threading.Condition)

    def begun(self) -> None:
        """Wait for its first bytes. Raises what kept it from being made."""
        with self.changed:
            self.changed.wait_for(lambda: self.size > 0 or self.done)
            if self.error is not None:
                raise self.error

    def finished(self) -> None:
        """Wait for its last bytes. Raises as `begun` does."""
        with self.changed:
            self.changed.wait_for(lambda: self.done)
            if self.error is not None:
                raise self.error

    def blocks(self) -> Iterator[bytes]:
        """Its bytes as they come. What fails in between ends them."""
        with self.changed:
            file = self.path.open("rb")
        with file:
            while True:
                with self.changed:
                    at = file.tell()
                    self.changed.wait_for(lambda at=at: self.size > at or self.done)  # type: ignore[misc]
                    size, done = self.size, self.done
                while file.tell() < size and (block := file.read(min(READ_BYTES, size - file.tell()))):
                    yield block
                if done and file.tell() >= self.size:
                    return

    def left(self) -> None:
        """Whoever asked for it waits for it no more: a clip that nobody waits for is not begun."""
        with self.changed:
            self.readers -= 1


class Clips:
    """Clips of one gallery. root: where they are kept; None: in a folder of this object, which goes with it."""

    def __init__(self, gallery: Gallery) -> None:
        self.gallery = gallery
        self._own = cache_root(gallery) is None
        self.root = cache_root(gallery) or Path(tempfile.mkdtemp(prefix="resight-clips-"))
        self._threads = ThreadPoolExecutor(AT_ONCE, "clips")
        self._local = threading.local()
        self._decoders: list[Decoder] = []
        self._lock = threading.Lock()
        self._making: dict[Path, Clip] = {}
        self._sizes: OrderedDict[Path, int] | None = None  # of what is kept, the least recently used first
        self._places: OrderedDict[tuple[str, Any], Places] = OrderedDict()
        self._swept: tuple[str, ...] = ()

    def begin(self) -> None:
        """Start the decoder processes, before somebody waits for them."""
        for _ in range(AT_ONCE):
            self._threads.submit(lambda: self._decoder().start())

    def row(self, video_id: str) -> dict[str, Any] | None:
        """The video's row (VIDEOS_SCHEMA) as it is now; None where there is none. The clips of what was forgotten go."""
        snapshot = self.gallery.snapshot()
        if snapshot.commits != self._swept:
            self._sweep(set(snapshot.videos["video_id"].to_pylist()))
            self._swept = snapshot.commits
        videos = snapshot.videos
        place = pc.index(videos["video_id"], video_id).as_py()
        return None if place < 0 else videos.slice(place, 1).to_pylist()[0]

    def places(self, row: Mapping[str, Any]) -> Places:
        """Where a video is in its sources. Raises PipelineError where its boxes cannot be read any more."""
        key = row["video_id"], row["ingested_at"]
        with self._lock:
            if key in self._places:
                self._places.move_to_end(key)
                return self._places[key]
        found = self._threads.submit(self._read_places, row).result()
        with self._lock:
            self._places[key] = found
            while len(self._places) > KEPT_PLACES:
                self._places.popitem(last=False)
        return found

    def clip(self, row: Mapping[str, Any], start: float, end: float, crop: bool) -> Clip:
        """A clip of a video, made if it is not there, for a reader who says when it `left`.

        Raises BusyError where too many wait, and as `places` does.
        """
        request = self.places(row).request(start, end, crop)
        path = clip_folder(self.root, row["video_id"]) / f"{_name(row, request)}.mp4"
        with self._lock:
            kept = self._kept()
            if path in kept and path.is_file():
                kept.move_to_end(path)
                return Clip(path, size=kept[path], done=True)
            if path not in self._making:
                if len(self._making) >= WAITING:
                    raise BusyError(f"{WAITING} clips wait already; try again when some are made")
                self._making[path] = clip = Clip(path.with_name(f".{secrets.token_hex(8)}.part"))
                self._threads.submit(self._make, path, clip, request, row["video_id"])
            clip = self._making[path]
            clip.readers += 1
            return clip

    def close(self) -> None:
        """End the decoder processes, and remove a folder of its own."""
        self._threads.shutdown(cancel_futures=True)
        for decoder in self._decoders:
            decoder.close()
        if self._own:
            shutil.rmtree(self.root, ignore_errors=True)

    def _decoder(self) -> Decoder:
        """This thread's."""
        if not hasattr(self._local, "decoder"):
            reach: Reach = self.gallery.reach()
            sampling = gallery_sampling(self.gallery, roots=reach.roots, endpoints=reach.endpoints, **LIMITS)
            self._local.decoder = Decoder(sampling)
            self._decoders.append(self._local.decoder)
        return self._local.decoder

    def _read_places(self, row: Mapping[str, Any]) -> Places:
        frames = self.gallery.read_video(dict(row))
        times = np.asarray(frames["time_s"], np.float64)
        first, last = float(times[0]), float(times[-1])
        if row["track"] is None:
            return Places((Part(row["uri"], 0.0, 0.0, row["frame_rate"]),), (), first, last)
        if row["boxes_uri"] is None:
            return self._of_recordings(row, times, frames["place"].to_pylist() if "place" in frames.schema.names else [])
        part = Part(row["uri"], 0.0, 0.0, row["frame_rate"])
        for event in self._decoder().answers(TrackRequest(row["boxes_uri"], row["track"])):
            if isinstance(event, Rejected):
                raise PipelineError(event.message)
            if isinstance(event, TrackBoxes):
                numbers = np.asarray(event.frames, np.float64)
                known, rate = np.asarray(frames["frame_index"], np.float64), row["fps"] or 25.0
                of_frames = np.interp(numbers, known, times)
                of_frames += np.minimum(numbers - known[0], 0) / rate + np.maximum(numbers - known[-1], 0) / rate
                boxes = tuple(zip(of_frames.tolist(), event.boxes, strict=True))
                return Places((part,), boxes, first, last)
        return Places((part,), (), first, last)

    def _of_recordings(self, row: Mapping[str, Any], times: np.ndarray, places: list[dict[str, Any]]) -> Places:
        """Of a person who was followed through recordings. times: float64 [n], of the video, of each of the places."""
        recordings = self.gallery.snapshot().recordings
        names = ("source_id", "uri", "frame_rate")
        known = {one["source_id"]: one for one in recordings.select(names).to_pylist()}
        parts: list[Part] = []
        before = None
        for time, place in zip(times.tolist(), places, strict=bool(places)):
            if place["recording_id"] != before:
                before = place["recording_id"]
                recording = known.get(before, {"uri": row["uri"], "frame_rate": row["frame_rate"]})
                parts.append(Part(recording["uri"], time if parts else 0.0, time - place["time_s"], recording["frame_rate"]))
        boxes = tuple(
            (time, (place["x"], place["y"], place["w"], place["h"])) for time, place in zip(times.tolist(), places, strict=False)
        )
        whole = (Part(row["uri"], 0.0, 0.0, row["frame_rate"]),)
        return Places(tuple(parts) or whole, boxes, float(times[0]), float(times[-1]))

    def _make(self, path: Path, clip: Clip, request: ClipRequest, video_id: str) -> None:
        error: PipelineError | VideoError | None = None
        with self._lock:
            if clip.readers <= 0:
                del self._making[path]
                return
        try:
            clip.path.parent.mkdir(parents=True, exist_ok=True)
            with clip.path.open("xb") as file:
                for event in self._decoder().answers(request):
                    if isinstance(event, Rejected):
                        raise VideoError(event.reason, event.message)
                    if isinstance(event, ClipStart):
                        clip.codec = event.codec
                    if isinstance(event, ClipPart):
                        file.write(event.data)
                        file.flush()
                        with clip.changed:
                            clip.size += len(event.data)
                            clip.changed.notify_all()
            if self.row(video_id) is None:
                raise VideoError("missing", "the video was forgotten")
            with clip.changed:
                clip.path = clip.path.replace(path)
        except (PipelineError, VideoError) as refused:
            error = refused
        except OSError as refused:
            error = PipelineError(f"the clip cannot be kept in {self.root}: {refused.strerror}")
        with self._lock:
            if error is None:
                self._kept()[path] = clip.size
                self._make_room()
            else:
                clip.path.unlink(missing_ok=True)
            self._making.pop(path, None)
        with clip.changed:
            clip.error, clip.done = error, True
            clip.changed.notify_all()

    def _kept(self) -> "OrderedDict[Path, int]":
        if self._sizes is None:
            found = []
            for folder, _, names in os.walk(self.root):
                for name in names:
                    file = Path(folder, name)
                    if name.endswith(".part"):  # of a service that was killed
                        file.unlink(missing_ok=True)
                    else:
                        status = file.stat()
                        found.append((status.st_mtime, file, status.st_size))
            self._sizes = OrderedDict((file, size) for _, file, size in sorted(found))
        return self._sizes

    def _make_room(self) -> None:
        kept = self._kept()
        total = sum(kept.values())
        while total > CACHE_BYTES and len(kept) > 1:
            file, size = kept.popitem(last=False)
            file.unlink(missing_ok=True)
            total -= size

    def _sweep(self, videos: set[str]) -> None:
        """Remove the clips of what is no longer there."""
        known = {clip_folder(self.root, video_id) for video_id in videos}
        with self._lock:
            for folder in self.root.iterdir() if self.root.is_dir() else ():
                if folder not in known:
                    shutil.rmtree(folder, ignore_errors=True)
            if self._sizes is not None:
                for file in [file for file in self._sizes if file.parent not in known]:
                    del self._sizes[file]
            live = {key: one for key, one in self._places.items() if key[0] in videos}
            self._places = OrderedDict(live)


def _name(row: Mapping[str, Any], request: ClipRequest) -> str:
    """Of the file: what is shown and how; a local source that was changed is another one."""
    changed = None
    with contextlib.suppress(OSError):
        status = Path(request.uri).stat()
        changed = status.st_size, status.st_mtime_ns
    return sha256(repr((VERSION, row["ingested_hash"], str(row["ingested_at"]), request, changed)))[:32]
