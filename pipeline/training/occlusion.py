"""Copies of videos in which the person is hidden for a while: what training learns from and heads are judged on.

In one stretch of a video a block of one colour, a thing, or another person covers all of the picture below the head, or the
pictures are another person's altogether, as where a tracker jumps from one to another; frames outside the stretch stay as they
are, so that a copy has its original's frames one for one.
"""

import csv
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np

from pipeline.catalog.inputs import Catalog
from pipeline.decoding.decoder import Decoder
from pipeline.decoding.sampling import Sampling
from pipeline.decoding.video import Chunk, Rejected
from pipeline.errors import PipelineError, UsageError
from pipeline.storage.hashing import hash_number, sha256

KINDS = ("block", "thing", "person")
SWITCH = "switch"
HEAD = (0.12, 0.22)  # share of the picture's height that stays visible at the top, from .. to
QUALITY = 95  # of the JPEG files
UNFINISHED = "occlusion.unfinished"  # lies in a folder until its manifest is written: a run that was killed starts afresh
COLUMNS = ("uri", "video_id", "camera_id", "start_time", "person_id", "hidden")


@dataclass(frozen=True)
class OcclusionSettings:
    """share: of a video's frames, one stretch, 0..1; kind: one of KINDS, "mixed" for any of them, or SWITCH; seed: what is drawn
    follows from it.
    """

    share: float = 0.5
    kind: str = "block"
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.share <= 1:
            raise UsageError(f"the hidden share of a video's frames lies in 0..1, not {self.share}")
        if self.kind not in (*KINDS, "mixed", SWITCH):
            raise UsageError(f"what hides people is {', '.join(KINDS)}, mixed or {SWITCH}, not {self.kind!r}")


def hide_stretch(
    frames: np.ndarray,
    random: np.random.Generator,
    share: float = 0.5,
    kind: str = "block",
    others: np.ndarray | None = None,
    visible: tuple[float, float] = HEAD,
) -> tuple[np.ndarray, np.ndarray]:
    """Cover the person in one stretch of a video.

    frames: uint8 [n, h, w, 3], RGB. share: of the frames, rounded up. kind: "block" of one colour, "thing" (a block with
    stripes and light that stands still while the picture moves), "person" and "switch" (these need others: uint8 [m, h, w,
    3], frames of another person's video, the latter from the top of the picture on). visible: shares of the picture's height, of
    which one between them stays as it is at the top. Returns (a copy uint8 [n, h, w, 3],
    hidden bool [n]). Raises UsageError for another kind.
    """
    count, height, width = frames.shape[:3]
    covered = int(np.ceil(round(share * count, 6)))
    start = int(random.integers(0, count - covered + 1))
    hidden = np.zeros(count, bool)
    hidden[start : start + covered] = True
    top = 0 if kind == SWITCH else round(height * random.uniform(*visible))
    copy = frames.copy()
    rows = np.flatnonzero(hidden)
    if kind == "block":
        copy[rows, top:] = random.integers(0, 256, 3)
    elif kind == "thing":
        copy[rows, top:] = _thing(height - top, width, random)
    elif kind in ("person", SWITCH) and others is not None and len(others):
        first = int(random.integers(0, len(others)))
        for number, row in enumerate(rows):
            copy[row, top:] = others[(first + number) % len(others), top:]
    else:
        raise UsageError(f"what hides people is {', '.join(KINDS)} or {SWITCH} (with frames of another person), not {kind!r}")
    return copy, hidden


def _thing(height: int, width: int, random: np.random.Generator) -> np.ndarray:
    """The side of a van, a wall, a hoarding: two colours in stripes, lit from one side. uint8 [height, width, 3]."""
    colours = random.integers(0, 256, (2, 3)).astype(np.float32)
    stripes = random.integers(1, 9)
    along = np.arange(height)[:, None] if random.random() < 0.5 else np.arange(width)[None]
    which = (along * stripes // max(along.shape)) % 2 + np.zeros((height, width), int)
    light = np.linspace(random.uniform(0.6, 1.0), random.uniform(0.8, 1.3), width)[None, :, None]
    speckle = cv2.GaussianBlur(random.normal(0, 25, (height, width)).astype(np.float32), (0, 0), 1.5)[..., None]
    return np.clip(colours[which] * light + speckle, 0, 255).astype(np.uint8)


def occlude_catalog(
    catalog: Catalog,
    out: str | Path,
    settings: OcclusionSettings,
    sampling: Sampling | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[Path, list[str]]:
    """Write a copy of every candidate with a folder of images each; returns the path of their manifest and what was left out.

    out: an empty or absent folder, or one that a run of this function left unfinished, which is emptied. Frames are sampled,
    so that each image counts when the copies are ingested. The copy of a video depends on its id, the settings and, for
    "person" and "switch", the last video before it that shows somebody else, as far as labels tell. Left out, by id and
    reason: sources that cannot be decoded and those with a boxes file. Raises UsageError for a folder that is not empty and
    when nothing could be copied, PipelineError when it cannot be written.
    """
    out = Path(out)
    _start(out)
    sampling = replace(sampling or Sampling(), roots=catalog.reach.roots, endpoints=catalog.reach.endpoints)
    rows: list[dict[str, str]] = []
    left_out: list[str] = []
    seen: list[tuple[str | None, np.ndarray]] = []  # the last two videos of different people
    try:
        with Decoder(sampling) as decoder:
            for number, source in enumerate(catalog.table.to_pylist(), 1):
                frames = _frames(decoder, source)
                if isinstance(frames, str):
                    left_out.append(f"{source['source_id']}: {frames}")
                else:
                    person = source["person_id"]
                    others = [before for label, before in seen if label is None or label != person]
                    rows.append(_write_copy(source, frames, others[-1] if others else None, settings, out))
                    seen = [*(one for one in seen if person is None or one[0] != person), (person, frames)][-2:]
                progress(number, len(catalog.table))
        if not rows:
            raise UsageError(f"no video of the input could be copied; {left_out[0]}")
        with (out / "manifest.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
        (out / UNFINISHED).unlink()
    except OSError as error:
        raise PipelineError(f"{out} cannot be written: {error.strerror}") from error
    return out / "manifest.csv", left_out


def _start(out: Path) -> None:
    """Empty the folder if a run that was killed left it, and mark it as unfinished."""
    try:
        if (out / UNFINISHED).exists():
            shutil.rmtree(out)
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise UsageError(f"{out} is not an empty folder")
        out.mkdir(parents=True, exist_ok=True)
        (out / UNFINISHED).touch()
    except OSError as error:
        raise PipelineError(f"{out} cannot be written: {error.strerror}") from error


def _frames(decoder: Decoder, source: dict) -> np.ndarray | str:
    """All sampled frames of a catalog row, uint8 [n, h, w, 3], or why there are none."""
    if source["reject_reason"] is not None:
        return source["reject_reason"]
    if source["boxes_uri"] is not None:
        return "videos with a boxes file are not copied"
    chunks = []
    for event in decoder.events(source["uri"], frame_rate=source["frame_rate"]):
        if isinstance(event, Rejected):
            return event.reason
        if isinstance(event, Chunk):
            chunks.append(event.frames)
    return np.concatenate(chunks) if chunks else "no_frames"


def _write_copy(
    source: dict, frames: np.ndarray, others: np.ndarray | None, settings: OcclusionSettings, out: Path
) -> dict[str, str]:
    video_id = source["source_id"]
    random = np.random.default_rng(hash_number(f"{settings.seed} {video_id}"))
    kinds = KINDS if others is not None else KINDS[:2]
    kind = str(random.choice(kinds)) if settings.kind == "mixed" else settings.kind
    if kind == "person" and others is None:
        kind = "thing"  # the first video has nobody before it
    share = 0.0 if kind == SWITCH and others is None else settings.share  # nor anybody to jump to: the manifest says 0.000
    copy, hidden = hide_stretch(frames, random, share, "block" if share == 0 else kind, others)
    folder = out / sha256(video_id)[:16]
    folder.mkdir(parents=True)
    for number, frame in enumerate(copy):
        encoded = cv2.imencode(".jpg", frame[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, QUALITY])[1]
        (folder / f"{number:06d}.jpg").write_bytes(encoded.tobytes())
    start = source["start_time"]
    return {
        "uri": folder.name,
        "video_id": video_id,
        "camera_id": source["camera_id"] or "",
        "start_time": start.isoformat() if start else "",
        "person_id": source["person_id"] or "",
        "hidden": f"{hidden.mean():.3f}",
    }
