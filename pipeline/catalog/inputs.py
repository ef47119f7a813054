"""The catalog: which candidate videos there are, one row each, from a folder, a bucket prefix or a manifest.

Nothing is decoded here and no video is opened: a million rows read in seconds, and whether a uri of a manifest is a video
or a folder of images shows when it is decoded.
"""

import functools
import heapq
import os
import posixpath
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import fs as pafs

from pipeline.catalog.image_folders import IMAGE_SUFFIXES, is_image_pattern
from pipeline.catalog.manifest import MANIFEST_COLUMNS, MANIFEST_SUFFIXES, read_manifest
from pipeline.errors import EmptyInputError, UsageError
from pipeline.storage.faults import StorageError
from pipeline.storage.hashing import sha256
from pipeline.storage.location import Location, resolve
from pipeline.storage.many_rows import IN_MEMORY, STEP_ROWS, Gathering, gathered, steps
from pipeline.storage.reach import Reach
from pipeline.storage.uris import canonical_uri, is_utf8

REJECT_REASONS = {
    "missing": "there is no such file",
    "permission_denied": "the file or folder may not be read",
    "unavailable": "its storage, or the disk of who decodes it, does not answer; the next ingest tries it again",
    "outside_roots": "it lies outside the folders and buckets that are allowed",
    "unnamed_endpoint": "its uri names an endpoint that the command does not (`--endpoint`); credentials are not sent there",
    "bad_name": "the file name is not UTF-8",
    "empty": "the file holds no bytes",
    "not_a_video": "the file is of another kind",
    "truncated": "the file ends too early",
    "undecodable": "it looks like a video, but its frames cannot be decoded, or too many of its packets (`--max-damage`)",
    "unreadable_image": "an image of the folder cannot be decoded",
    "no_frames": "it holds no frames, or no image matches its pattern",
    "scene": "it shows a whole scene where one person was asked for; only targets are refused for it",
    "too_large": "it has more pixels or frames than the settings allow",
    "time_limit": "decoding took longer than the settings allow",
    "decoder_crash": "the decoder's process died on it",
    "bad_features": "the backbone gives no finite features for it",
    "boxes_missing": "its boxes file cannot be read",
    "boxes_invalid": "its boxes file has a fault",
    "boxes_outside_frame": "no box of the track lies inside the frame",
    "forgotten": "the same bytes were forgotten with `jobs.forget`; `--retry-rejected` leaves them out",
}
_LEFT_OUT_OF_IDS = frozenset(
    {
        *(".3g2", ".3gp", ".264", ".265", ".asf", ".avi", ".divx", ".f4v", ".flv", ".h264", ".h265", ".hevc"),
        *(".ivf", ".m1v", ".m2ts", ".m2v", ".m4v", ".mjpeg", ".mjpg", ".mkv", ".mov", ".mp4", ".mpe", ".mpeg"),
        *(".mpg", ".mts", ".mxf", ".ogg", ".ogm", ".ogv", ".ts", ".vob", ".webm", ".wmv", ".y4m"),
    }
)
# Those that were added later stay in default ids: a manifest's rows that a gallery has must keep theirs.
VIDEO_SUFFIXES = _LEFT_OUT_OF_IDS | {
    *(".dav", ".dif", ".dv"),  # Dahua's recorders; DV tapes
    *(".avc", ".h26l"),  # raw H.264
    *(".m2t", ".tod", ".tp", ".trp"),  # MPEG transport streams
    *(".m2p", ".mod", ".mp2v", ".mpv", ".ps", ".vro"),  # MPEG program streams and MPEG-2 video
    ".qt",
}

# Of a source's files when they were listed, see pipeline.ingest.source_changes; null until then, and where that is not known.
SOURCE_STATE = (
    ("source_size", pa.int64()),  # bytes; of images, of all of them
    ("source_mtime", pa.timestamp("us", tz="UTC")),  # time of modification; of images, the latest
    ("boxes_size", pa.int64()),
    ("boxes_mtime", pa.timestamp("us", tz="UTC")),
)
# reject_reason and reject_message are set on rows that are refused before anything is decoded.
SOURCE_SCHEMA = pa.schema(
    [
        ("source_id", pa.string()),
        ("uri", pa.string()),
        ("kind", pa.string()),
        ("camera_id", pa.string()),
        ("start_time", pa.timestamp("us", tz="UTC")),
        ("person_id", pa.string()),
        ("boxes_uri", pa.string()),
        ("frame_rate", pa.float64()),  # frames a second, of recordings whose frames carry no times
        ("clock_offset", pa.float64()),  # seconds that the clock was ahead which start_time was taken from, and taken off it
        ("reject_reason", pa.string()),
        ("reject_message", pa.string()),
        *SOURCE_STATE,
    ]
)
_NOT_READABLE = re.compile(r"[^A-Za-z0-9._-]+")
_EXTENSION = re.compile(r"\.[a-z0-9_+~-]{1,16}")
_KINDS_NAMED = 12
SORTED_ROWS = IN_MEMORY  # to sort more they would all have to be in memory


@dataclass(frozen=True)
class Catalog:
    """What read_catalog found. table: SOURCE_SCHEMA, up to SORTED_ROWS sorted by source_id. root: canonical uri of the input's
    folder.

    Of what lies below a folder input and belongs to no candidate, ignored has the number of files by extension (lower case, with
    the dot; "" for none), and ignored_images that of images by the reason, in words. ignored_columns: columns of a manifest that
    were not read. reach: where its uris may lead.
    """

    table: pa.Table
    root: str
    ignored: Mapping[str, int] = field(default_factory=dict)
    ignored_images: Mapping[str, int] = field(default_factory=dict)
    ignored_columns: tuple[str, ...] = ()
    reach: Reach = field(default_factory=Reach)

    def not_read(self) -> str:
        """What was passed over, in words: "212 files: 120 .txt, 80 .json, 12 without extension"; "" where all was read."""
        kinds = sorted(self.ignored.items(), key=lambda item: (-item[1], item[0]))
        words = [f"{count} {extension or 'without extension'}" for extension, count in kinds[:_KINDS_NAMED]]
        if others := kinds[_KINDS_NAMED:]:
            words.append(f"{sum(count for _, count in others)} of {len(others)} other kinds")
        files = sum(self.ignored.values())
        parts = [f"{files} file{'s'[: files > 1]}: {', '.join(words)}"] if words else []
        parts += [f"{count} image{'s'[: count > 1]} {reason}" for reason, count in sorted(self.ignored_images.items())]
        if self.ignored_columns:
            parts.append(f"the columns {', '.join(self.ignored_columns)}")
        return "; ".join(parts)


def read_catalog(
    source: str | Path, *, roots: Sequence[str | Path] | None = None, endpoints: Sequence[str] | None = None
) -> Catalog:
    """The candidate videos of a folder or bucket prefix (searched recursively), a manifest, one video file or image pattern.

    In folders, files with one of VIDEO_SUFFIXES are candidates, and so are the images of each folder that holds numbered ones (a
    stem that ends in a digit) and no video; what lies in folders below it is looked at on its own. Names with a leading dot are
    skipped; links are followed once.

    A manifest has the column uri and may have the others of MANIFEST_COLUMNS; relative uris start from its folder, times without
    a zone are UTC, empty text is none. Rows without video_id get default_video_id. An image pattern (see is_image_pattern) is one
    candidate, as the input and in a manifest.

    roots: folders and prefixes that uris and boxes_uris must lie in; rows that do not are marked with the reject reason
    "outside_roots". None or empty: anywhere. endpoints: URLs that they may name besides that of the source and the roots; rows
    that name others are marked "unnamed_endpoint".

    Raises EmptyInputError for a folder or prefix without videos, UsageError for an input that is missing or has a fault, which is
    named with its row (rows of a manifest count from 1, without the header), and StorageError when the storage refuses.
    """
    location = resolve(source)
    info = location.info()
    is_pattern = info.type != pafs.FileType.Directory and is_image_pattern(location.name)
    if info.type == pafs.FileType.NotFound and not (is_pattern and resolve(_folder_uri(location)).exists()):
        nothing = UsageError if location.is_local else EmptyInputError  # a prefix is there once an object is
        raise nothing(f"there is no file or folder {location.uri}")
    suffix = posixpath.splitext(location.path)[1].lower()
    if info.type == pafs.FileType.Directory:
        catalog = _read_folder(location)
    elif suffix in MANIFEST_SUFFIXES:
        catalog = _from_manifest(location)
    elif suffix in VIDEO_SUFFIXES or is_pattern:
        catalog = Catalog(source_table([location.uri], ["images" if is_pattern else "file"]), _folder_uri(location))
    else:
        raise UsageError(
            f"{location.uri} is no input: give a folder, a manifest ({', '.join(MANIFEST_SUFFIXES)}), "
            "a video file with a usual extension (.mp4, .mkv, ...) or an image pattern (.../0001C1T0001F*.jpg)"
        )
    _refuse_duplicates(catalog.table, "uri", location.uri)
    _refuse_duplicates(catalog.table, "source_id", location.uri)
    reach = Reach.of(location.uri, roots=roots or (), endpoints=endpoints or ())
    table = _mark_refused(catalog.table, reach)
    return replace(catalog, table=table.sort_by("source_id") if len(table) <= SORTED_ROWS else table, reach=reach)


def candidate_id(source_id: str, track_id: int | str) -> str:
    """The video_id of one track of a source that has a boxes file; "#" can stand in no source_id."""
    return f"{source_id}#{track_id}"


def default_video_id(uri: str) -> str:
    """A readable id that only this canonical uri has: its file's stem or folder's name and 12 hex digits of its SHA-256."""
    name = (uri if uri.startswith("/") else uri.partition("?")[0]).rpartition("/")[2]
    stem, dot, suffix = name.rpartition(".")
    has_suffix = dot + suffix.lower() in _LEFT_OUT_OF_IDS or is_image_pattern(name)
    readable = _NOT_READABLE.sub("_", stem if has_suffix else name).strip("._-")[:60]
    return f"{readable or 'video'}-{sha256(uri)[:12]}"


@dataclass
class _Folder:
    images: int = 0
    numbered: bool = False
    videos: int = 0


@dataclass
class _Listing:
    """What lies below the input, gathered name by name; folders are relative to the input, "" is the input itself."""

    root: Location
    sources: Gathering = field(default_factory=lambda: Gathering(SOURCE_SCHEMA))
    uris: list[str] = field(default_factory=list)  # that are not among the sources yet
    kinds: list[str] = field(default_factory=list)
    refused: dict[str, tuple[str, str]] = field(default_factory=dict)  # uri -> reason, message
    folders: dict[str, _Folder] = field(default_factory=dict)
    ignored: Counter[str] = field(default_factory=Counter)
    ignored_images: Counter[str] = field(default_factory=Counter)

    def add_file(self, folder: str, name: str) -> None:
        stem, suffix = posixpath.splitext(name)
        if suffix.lower() in VIDEO_SUFFIXES:
            self.folders.setdefault(folder, _Folder()).videos += 1
            self.add_source(posixpath.join(folder, name), "file")
        elif suffix.lower() in IMAGE_SUFFIXES:
            counts = self.folders.setdefault(folder, _Folder())
            counts.images += 1
            counts.numbered |= stem[-1:].isascii() and stem[-1:].isdigit()
        else:
            extension = suffix.lower()
            self.ignored[extension if _EXTENSION.fullmatch(extension) else ""] += 1

    def add_source(self, path: str, kind: str, refused: tuple[str, str] | None = None) -> None:
        uri = self.root.join(path).uri if path else self.root.uri
        if not is_utf8(path):
            uri = Path(uri).as_uri()  # percent-encoded: the only way to name it in a table
            refused = ("bad_name", f"the name of {uri} is not UTF-8; rename it")
        self.uris.append(uri)
        self.kinds.append(kind)
        if refused:
            self.refused[uri] = refused
        if len(self.uris) >= STEP_ROWS:
            self.gather()

    def gather(self) -> None:
        self.sources.add(source_table(self.uris, self.kinds, refused=self.refused))
        self.uris, self.kinds, self.refused = [], [], {}

    def add_image_folders(self) -> None:
        """Turn the folders of images that were seen into sources; call it once, after all files."""
        examples: dict[str, str] = {}  # reason -> the first folder
        for folder, counts in sorted(self.folders.items()):
            if counts.images and (counts.videos or not counts.numbered):
                reason = "in folders that also hold videos" if counts.videos else "in folders without numbered names"
                self.ignored_images[f"{reason}, such as {examples.setdefault(reason, self._shown(folder))}"] += counts.images
            elif counts.images:
                self.add_source(folder, "images")

    def _shown(self, folder: str) -> str:
        """A folder's path for people; what is not UTF-8 in it is a question mark."""
        return posixpath.join(self.root.path, folder).rstrip("/").encode(errors="replace").decode()


def _read_folder(location: Location) -> Catalog:
    listing = _Listing(location)
    if location.is_local:
        _walk(location.path, listing)
    else:
        for file in location.list(recursive=True):
            relative = file.path[len(location.path) + 1 :]
            if not any(part.startswith(".") for part in relative.split("/")):
                listing.add_file(*posixpath.split(relative))
    listing.add_image_folders()
    listing.gather()
    catalog = Catalog(listing.sources.table(), location.uri, listing.ignored, listing.ignored_images)
    if not len(catalog.table):
        passed_over = catalog.not_read()
        raise EmptyInputError(
            f"{location.uri} holds no video and no folder of numbered images" + (f" ({passed_over})" if passed_over else "")
        )
    return catalog


def _walk(root: str, listing: _Listing) -> None:
    """Feed every file below a local folder to the listing.

    A folder is read once, by its own path rather than through a link where both lead to it: so links may form circles.
    """
    folders, links, seen = [""], list[str](), set[tuple[int, int]]()
    while folders or links:
        folder = folders.pop() if folders else heapq.heappop(links)
        path = posixpath.join(root, folder)
        try:
            status = os.stat(path)  # noqa: PTH116 - like scandir below, for the many folders of a large input
            if (status.st_dev, status.st_ino) in seen:
                continue
            seen.add((status.st_dev, status.st_ino))
            with os.scandir(path) as scan:
                entries = list(scan)
        except PermissionError as error:
            if not folder:
                raise StorageError(f"cannot list {root}: permission denied", "permission_denied") from error
            listing.add_source(folder, "images", ("permission_denied", f"the folder {path} may not be listed"))
        except FileNotFoundError:
            continue  # removed since its parent was read
        except OSError as error:
            raise StorageError(f"cannot list {path}: {error.strerror}", "other") from error
        else:
            for entry in entries:
                _add_entry(entry, folder, listing, folders, links)


def _add_entry(entry: os.DirEntry[str], folder: str, listing: _Listing, folders: list[str], links: list[str]) -> None:
    if entry.name.startswith("."):
        return
    try:
        is_folder, is_file = entry.is_dir(), entry.is_file()
    except OSError:  # a link to itself
        is_folder = is_file = False
    if is_folder and entry.is_symlink():
        heapq.heappush(links, posixpath.join(folder, entry.name))
    elif is_folder:
        folders.append(posixpath.join(folder, entry.name))
    elif is_file or (entry.is_symlink() and not Path(entry.path).exists()):
        # A link to nothing stays a candidate, so that it ends among the rejects, as missing.
        listing.add_file(folder, entry.name)
    else:
        listing.ignored["(pipe, socket or device)"] += 1  # opening one could wait for ever


def _from_manifest(location: Location) -> Catalog:
    folder, others = _folder_uri(location), set[str]()
    table = gathered(map(_sources, read_manifest(location, folder, others)), SOURCE_SCHEMA)
    return Catalog(table, folder, ignored_columns=tuple(sorted(others)))


def _sources(manifest: pa.Table) -> pa.Table:
    """SOURCE_SCHEMA of rows of a manifest."""
    columns = {name: manifest[name] for name in MANIFEST_COLUMNS if name not in ("uri", "video_id")}
    uris = manifest["uri"].to_pylist()
    ids = [explicit or default_video_id(uri) for explicit, uri in zip(manifest["video_id"].to_pylist(), uris, strict=True)]
    return source_table(uris, ["auto"] * len(uris), source_id=ids, **columns)


def source_table(
    uris: list[str], kinds: list[str], refused: dict[str, tuple[str, str]] | None = None, **columns: Any
) -> pa.Table:
    """SOURCE_SCHEMA, unsorted; columns that are not given are null, ids the default ones.

    uris: canonical, one a source. kinds: "file", "images" or "auto" (not known before it is decoded). refused: uri -> (reject
    reason, message). columns: others of SOURCE_SCHEMA by name, a list or column each.
    """
    columns |= {"uri": uris, "kind": kinds}
    if "source_id" not in columns:
        columns["source_id"] = [default_video_id(uri) for uri in uris]
    if refused:
        for name, place in (("reject_reason", 0), ("reject_message", 1)):
            columns[name] = [refused[uri][place] if uri in refused else None for uri in uris]
    arrays = []
    for name, kind in zip(SOURCE_SCHEMA.names, SOURCE_SCHEMA.types, strict=True):
        values = columns.get(name)
        if values is None:
            arrays.append(pa.nulls(len(uris), kind))
        else:
            arrays.append(values if isinstance(values, pa.ChunkedArray) else pa.array(values, kind))
    return pa.table(arrays, schema=SOURCE_SCHEMA)


def _refuse_duplicates(table: pa.Table, name: str, source: str) -> None:
    # A number for each value, for a set of millions of texts takes gigabytes; equal numbers are looked at.
    hashes = [np.fromiter(map(hash, part[name].to_pylist()), np.int64, len(part)) for part in steps(table)]
    hashes_sorted = np.sort(np.concatenate([np.empty(0, np.int64), *hashes]))
    repeated = np.unique(hashes_sorted[1:][hashes_sorted[1:] == hashes_sorted[:-1]])
    if not len(repeated):
        return
    suspects = [part.filter(pa.array(np.isin(own, repeated))) for part, own in zip(steps(table), hashes, strict=True)]
    counts = pa.concat_tables(suspects).group_by(name).aggregate([([], "count_all")])
    twice = counts.filter(pc.greater(counts["count_all"], 1))[name].sort()
    if len(twice):
        what = "uri" if name == "uri" else "video_id"
        named = ", ".join(repr(value) for value in twice[:5].to_pylist()) + (", ..." if len(twice) > 5 else "")
        raise UsageError(f"{len(twice)} {what} values stand more than once in {source}: {named}")


def _mark_refused(table: pa.Table, reach: Reach) -> pa.Table:
    """The table with a reject reason for rows that lead out of reach."""
    if not reach.roots and not any(pc.any(pc.match_substring(table[name], "?")).as_py() for name in ("uri", "boxes_uri")):
        return table
    refusal, linked = reach.refusals(), functools.lru_cache(maxsize=4096)(_linked_images)
    return gathered((_marked(part, reach, refusal, linked) for part in steps(table)), SOURCE_SCHEMA)


def _marked(
    table: pa.Table,
    reach: Reach,
    refusal: Callable[[str], tuple[str, str] | None],
    linked: Callable[[str], list[str]],
) -> pa.Table:
    reasons, messages = table["reject_reason"].to_pylist(), table["reject_message"].to_pylist()
    for row, places in enumerate(zip(table["uri"].to_pylist(), table["boxes_uri"].to_pylist(), strict=True)):
        if reasons[row] is None:
            links = linked(places[0]) if reach.roots else []
            refusals = (refusal(place) for place in (*places, *links) if place is not None)
            reasons[row], messages[row] = next(filter(None, refusals), (None, messages[row]))
    for name, values in (("reject_reason", reasons), ("reject_message", messages)):
        table = table.set_column(table.schema.get_field_index(name), SOURCE_SCHEMA.field(name), pa.array(values, pa.string()))
    return table


def _linked_images(uri: str) -> list[str]:
    """Links among the files of a local folder of images or of a pattern's folder: each may lead elsewhere than the folder."""
    if not uri.startswith("/"):
        return []
    folder = posixpath.dirname(uri) if is_image_pattern(uri) and not os.path.isdir(uri) else uri  # noqa: PTH112
    try:
        with os.scandir(folder) as entries:
            return [entry.path for entry in entries if entry.is_symlink() and entry.name.lower().endswith(tuple(IMAGE_SUFFIXES))]
    except OSError:
        return []  # a video, or nothing that can be read: decoding it says so


def _folder_uri(location: Location) -> str:
    return canonical_uri("..", location.uri)
