"""The files of an index's versions: which there are, what their manifests say, and what this machine keeps of them."""

import functools
import json
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from pyarrow import fs as pafs

from pipeline.errors import PipelineError
from pipeline.gallery.gallery import Gallery
from pipeline.index.cached_files import drop_gone
from pipeline.storage.faults import explained
from pipeline.storage.formats import check_format
from pipeline.storage.location import Location
from pipeline.storage.seals import unsealed

OLDEST_FORMAT, FORMAT = 3, 4
OPENED_AT_ONCE = 8  # tables of partitions
NO_VERSIONS = ("partitions", "builds")  # the other folders of index/


def read_manifest(
    gallery: Gallery,
    version: str,
    read: Callable[[Location], bytes] = lambda location: location.join("manifest.json").read_bytes(),
) -> dict[str, Any]:
    """The manifest of an index version. Raises PipelineError when it is damaged or of another format. read: of its folder."""
    location = gallery.location.join("index", version)
    try:
        manifest = unsealed(read(location))
        remedy = "build it again with jobs.index --rebuild"
        check_format(f"the index {location.uri}", manifest["format"], OLDEST_FORMAT, FORMAT, remedy)
        needed = {"settings", "backbone", "head", "files", "untrained", "commits", "drawn", "partitions"}
        if missing := needed - manifest.keys():
            raise ValueError(f"its manifest lacks {', '.join(sorted(missing))}")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise PipelineError(f"the index {location.uri} is damaged: {error}; build it again with jobs.index") from error
    return manifest


def partition_store(gallery: Gallery) -> Location:
    """Where the partitions of all index versions lie."""
    return gallery.location.join("index", "partitions")


def version_files(gallery: Gallery, manifest: dict[str, Any]) -> Iterator[tuple[Location, dict[str, Any]]]:
    """All files of an index version, each with its size in bytes and sha256; those of its partitions last."""
    location, store = gallery.location.join("index", manifest["version"]), partition_store(gallery)
    yield from ((location.join(name), entry) for name, entry in manifest["files"].items())
    for part in manifest["partitions"]:
        yield from ((store.join(part["id"], name), entry) for name, entry in part["files"].items())


def partition_ids(gallery: Gallery, version: str) -> set[str]:
    """Ids of the partitions that a version's manifest names, whatever its format; none where it cannot be read."""
    try:
        return _ids_in(gallery.location.join("index", version, "manifest.json").read_bytes())
    except (PipelineError, ValueError, KeyError, TypeError):
        return set()


def _ids_in(manifest: bytes) -> set[str]:
    return {part["id"] for part in json.loads(manifest)["partitions"]}


def drop_cached(gallery: Gallery, versions: Sequence[str]) -> None:
    """Remove from this machine's cache what belongs to other versions than these, and what was forgotten with them."""
    drop_gone(gallery.location.join("index"), versions, _ids_in)


def index_versions(gallery: Gallery) -> list[str]:
    """Published versions, oldest first."""
    index = gallery.location.join("index")
    with explained("list", index.uri):
        found = index.filesystem.get_file_info(pafs.FileSelector(index.path, allow_not_found=True))
    names = sorted(info.base_name for info in found if info.type == pafs.FileType.Directory and info.base_name not in NO_VERSIONS)
    with ThreadPoolExecutor(OPENED_AT_ONCE) as pool:
        return [
            name for name, there in zip(names, pool.map(functools.partial(_is_published, index), names), strict=True) if there
        ]


def _is_published(index: Location, version: str) -> bool:
    return index.join(version, "manifest.json").exists()
