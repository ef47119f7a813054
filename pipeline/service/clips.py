"""Clips and pictures of sources: made in decoder processes of their own, read while they are made, kept on disk for a while."""

import contextlib
import functools
import os
import re
import secrets
import shutil
import tempfile
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from queue import LifoQueue
from typing import Any, TypeVar

import pyarrow.compute as pc

from pipeline.decoding.decoder import Decoder
from pipeline.decoding.requests import ClipRequest, StillRequest, TrackRequest
from pipeline.decoding.sampling import Sampling
from pipeline.decoding.video import ClipPart, ClipStart, Event, Rejected
from pipeline.errors import PipelineError, VideoError
from pipeline.gallery.clip_cache import cache_root, clip_folder
from pipeline.gallery.gallery import Gallery, Position
from pipeline.ingest.gallery_sampling import gallery_sampling
from pipeline.search.source_places import Places, read_places
from pipeline.service.work import BusyError
from pipeline.storage.hashing import sha256

VERSION = 1  # of how clips are made; another one makes them anew
CACHE_BYTES = 2 << 30  # of one folder of clips; the least recently used go first
AT_ONCE = 2  # that are made, each in a decoder process
WAITING = 32  # clips that wait to be made
KEPT_PLACES = 500  # videos of which it is known where they are in their sources
LIMITS: dict[str, Any] = {"time_limit": 20.0, "cpu_limit": 120.0, "memory_limit": 1 << 30}  # of making one clip, see `Sampling`
READ_BYTES = 256 << 10
OURS = re.compile(r"[0-9a-f]{32}\.(?:mp4|jpg)")
Made = TypeVar("Made")
UNFINISHED = re.compile(r"\.[0-9a-f]{32}\.part")


@dataclass
class Clip:
    """A clip or picture that is made or was. codec: as browsers call it, where that is known by now."""

    path: Path
    codec: str = ""
    size: int = 0
    done: bool = False
    error: PipelineError | VideoError | None = None
    readers: int = 0
    changed: threading.Condition = field(default_factory=threading.Condition)

    def begun(self, whole: bool = False) -> None:
        """Wait for its first bytes, or all of it. Raises what kept it from being made."""
        with self.changed:
            self.changed.wait_for(lambda: self.done or (self.size > 0 and not whole))
            if self.error is not None:
                raise self.error

    def blocks(self) -> Iterator[bytes]:
        """Its bytes as they come. Raises what kept the rest from being made."""
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
                    if self.error is not None:
                        raise self.error
                    return

    def left(self) -> None:
        """Whoever asked for it waits for it no more: a clip that nobody waits for is not begun."""
        with self.changed:
            self.readers -= 1


class Clips:
    """Makes and keeps clips below a folder. sampling: of the decoders; at_once: how many of them there are."""

    def __init__(self, root: Path, sampling: Sampling, at_once: int = AT_ONCE) -> None:
        self.root = root
        self._threads = ThreadPoolExecutor(at_once, "clips")
        self._decoders = [Decoder(sampling) for _ in range(at_once)]
        self._idle: LifoQueue[Decoder] = LifoQueue()
        for decoder in self._decoders:
            self._idle.put(decoder)
        self._lock = threading.Lock()
        self._making: dict[Path, Clip] = {}
        self._sizes: OrderedDict[Path, int] | None = None  # of what is kept, the least recently used first

    def begin(self) -> None:
        """Start the decoder processes, before somebody waits for them."""
        for decoder in self._decoders:
            self._threads.submit(decoder.start)

    def clip(self, folder: Path, request: ClipRequest | StillRequest, content: object, is_there: Callable[[], bool]) -> Clip:
        """What is asked for, made if it is not there, for a reader who says when it `left`.

        folder: below the root, for what goes together. content: names what the source holds, with the request. is_there: asked
        once it is made, whether it may be kept. Raises BusyError where too many wait.
        """
        path = folder / f"{_name(request, content)}.{'jpg' if isinstance(request, StillRequest) else 'mp4'}"
        with self._lock:
            kept = self._kept()
            if path in kept and path.is_file():
                kept.move_to_end(path)
                return Clip(path, codec_of(path), kept[path], done=True)
            if path not in self._making:
                if len(self._making) >= WAITING:
                    raise BusyError(f"{WAITING} clips wait already; try again when some are made")
                self._making[path] = Clip(path.with_name(f".{secrets.token_hex(16)}.part"))
                self._threads.submit(self._make, path, self._making[path], request, is_there)
            clip = self._making[path]
            clip.readers += 1
            return clip

    def answers(self, request: TrackRequest | StillRequest) -> list[Event]:
        """What a decoder answers, all of it."""
        return self._threads.submit(self._with_decoder, lambda decoder: list(decoder.answers(request))).result()

    def keep_only(self, is_kept: Callable[[Path], bool]) -> None:
        """Remove all folders but these."""
        with self._lock:
            for folder in list(self.root.iterdir()) if self.root.is_dir() else ():
                if not is_kept(folder):
                    shutil.rmtree(folder, ignore_errors=True)
            if self._sizes is not None:
                for file in [file for file in self._sizes if not is_kept(file.parent)]:
                    del self._sizes[file]

    def close(self) -> None:
        """End the decoder processes."""
        self._threads.shutdown(cancel_futures=True)
        for decoder in self._decoders:
            decoder.close()

    def _with_decoder(self, does: Callable[[Decoder], Made]) -> Made:
        """What is done with a decoder that nobody else uses, the one that was used last: it is there."""
        decoder = self._idle.get()
        try:
            return does(decoder)
        finally:
            self._idle.put(decoder)

    def _make(self, path: Path, clip: Clip, request: ClipRequest | StillRequest, is_there: Callable[[], bool]) -> None:
        error: PipelineError | VideoError | None = None
        with self._lock:
            if clip.readers <= 0:
                del self._making[path]
                return
        try:
            clip.path.parent.mkdir(parents=True, exist_ok=True)
            with clip.path.open("xb", buffering=0) as file:
                self._with_decoder(functools.partial(self._write, file, clip, request))
            if not is_there():
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

    def _write(self, file: Any, clip: Clip, request: ClipRequest | StillRequest, decoder: Decoder) -> None:
        for event in decoder.answers(request):
            if isinstance(event, Rejected):
                raise VideoError(event.reason, event.message)
            if isinstance(event, ClipStart):
                clip.codec = event.codec
            if isinstance(event, ClipPart):
                file.write(event.data)
                with clip.changed:
                    clip.size += len(event.data)
                    clip.changed.notify_all()

    def _kept(self) -> "OrderedDict[Path, int]":
        if self._sizes is None:
            found = []
            for folder, _, names in os.walk(self.root):
                for file in (Path(folder, name) for name in names):
                    if UNFINISHED.fullmatch(file.name):  # of a service that was killed
                        file.unlink(missing_ok=True)
                    elif OURS.fullmatch(file.name):
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


class GalleryClips:
    """Clips of the videos of one gallery, kept beside its tables; of one in an object store in a folder that goes with this."""

    def __init__(self, gallery: Gallery) -> None:
        self.gallery = gallery
        self._own = None if cache_root(gallery) else tempfile.TemporaryDirectory(prefix="resight-clips-")
        reach = gallery.reach()
        sampling = gallery_sampling(gallery, roots=reach.roots, endpoints=reach.endpoints, **LIMITS)
        self.clips = Clips(cache_root(gallery) or Path(self._own.name if self._own else ""), sampling)
        self._lock = threading.Lock()
        self._places: OrderedDict[tuple[str, Any], Places] = OrderedDict()
        self._swept: Position = -1
        self._swept_gone = 0

    def row(self, video_id: str) -> dict[str, Any] | None:
        """The video's row (VIDEOS_SCHEMA) as it is now; None where there is none. The clips of what was forgotten go, and of all
        once somebody was who may be in those of others.
        """
        snapshot, gone = self.gallery.snapshot(), self._gone()
        with self._lock:
            new, more = snapshot.position != self._swept, self._swept != -1 and gone != self._swept_gone
            self._swept, self._swept_gone = snapshot.position, gone
        if new:
            folders = set() if more else {clip_folder(self.clips.root, one) for one in snapshot.videos["video_id"].to_pylist()}
            self.clips.keep_only(folders.__contains__)
        place = pc.index(snapshot.videos["video_id"], video_id).as_py()
        return None if place < 0 else snapshot.videos.slice(place, 1).to_pylist()[0]

    def places(self, row: Mapping[str, Any]) -> Places:
        """Where a video is in its sources. Raises PipelineError where its boxes cannot be read any more."""
        key = row["video_id"], (row["ingested_at"], self._gone())
        with self._lock:
            if key in self._places:
                self._places.move_to_end(key)
                return self._places[key]
        found = read_places(self.gallery, row, self.clips.answers)
        with self._lock:
            self._places[key] = found
            while len(self._places) > KEPT_PLACES:
                self._places.popitem(last=False)
        return found

    def still(self, row: Mapping[str, Any], number: int, crop: bool) -> StillRequest | None:
        """What is asked of the decoder for one of the video's frames that were looked at; None for any other."""
        frames = self.gallery.read_video(dict(row))
        at = pc.index(frames["frame_index"], number).as_py()
        if at < 0:
            return None
        time_s, rate = frames["time_s"][at].as_py(), row["frame_rate"]
        places = self.places(row)
        part = places.part(time_s)
        boxes = places.near(time_s, time_s) if crop else ()
        box = min(boxes, key=lambda one: abs(one[0] - time_s))[1] if boxes else None
        if "place" in frames.schema.names and (place := frames["place"][at].as_py()) is not None:
            number, time_s = place["frame"], place["time_s"]
        return StillRequest(part.uri, number, time_s, box, rate, blanks=part.blanked(time_s, time_s))

    def clip(self, row: Mapping[str, Any], request: ClipRequest | StillRequest) -> Clip:
        """A clip or picture of a video; see `Clips.clip`."""
        video_id = row["video_id"]
        content, gone = (row["ingested_hash"], str(row["ingested_at"])), self._gone()

        def is_there() -> bool:
            return self.row(video_id) is not None and self._gone() == gone

        return self.clips.clip(clip_folder(self.clips.root, video_id), request, content, is_there)

    def close(self) -> None:
        """End the decoder processes, and remove a folder of its own."""
        self.clips.close()
        if self._own is not None:
            self._own.cleanup()

    def _gone(self) -> int:
        """How much is known of people that were forgotten and may be in the videos of others."""
        snapshot = self.gallery.snapshot()
        return len(snapshot.forgotten_boxes) + len(snapshot.tombstones.rows)


def codec_of(path: Path) -> str:
    """What browsers call the codec of a clip (RFC 6381), from the beginning of its file; empty for what is none."""
    with path.open("rb") as file:
        head = file.read(2048)
    for name, begins in ((b"avcC", 5), (b"vpcC", 8)):
        at = head.find(name)
        if at > 0:
            one, two, three = head[at + begins : at + begins + 3]
            return f"avc1.{one:02x}{two:02x}{three:02x}" if name == b"avcC" else f"vp09.{one:02d}.{two:02d}.{three >> 4:02d}"
    return ""


def _name(request: ClipRequest | StillRequest, content: object) -> str:
    """Of the file: what is shown and how; a local source that was changed is another one."""
    changed = None
    with contextlib.suppress(OSError):
        status = Path(request.uri).stat()
        changed = status.st_size, status.st_mtime_ns
    return sha256(repr((VERSION, content, request, changed)))[:32]
