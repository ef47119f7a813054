"""Targets that people upload: files in a folder of the service, for the person who brought them, until it ends or others come."""

import functools
import hashlib
import re
import secrets
import shutil
import tempfile
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

from anyio import to_thread

from pipeline.errors import UsageError
from pipeline.service.work import BusyError

UPLOAD_PREFIX = "upload:"  # of targets
KEPT = 16  # the newest of a person, as many as one search takes; each of at most guard.UPLOAD_BYTES
KEPT_OF_ALL = 64  # of all people; beyond, whoever has most loses the oldest
AT_ONCE = 2  # that are being brought


@dataclass(frozen=True)
class Upload:
    """A file that a person brought. sha256: hexadecimal, of its bytes."""

    upload_id: str
    person: str
    path: Path
    size: int
    sha256: str


class Uploads:
    """The newest KEPT uploads of each person."""

    def __init__(self) -> None:
        self._kept: dict[str, Upload] = {}  # the oldest first
        self._coming = 0

    @functools.cached_property
    def folder(self) -> Path:
        """Where they lie; nobody else may look into it."""
        return Path(tempfile.mkdtemp(prefix="resight-uploads-"))

    async def take(self, person: str, name: str, content: AsyncIterator[bytes]) -> Upload:
        """Keep what is sent. name: as the person calls the file; only its plain characters are kept. Raises UsageError for an
        empty one and BusyError where others are being brought.
        """
        if self._coming >= AT_ONCE:
            raise BusyError(f"{AT_ONCE} files are being brought already; try again when one is there")
        upload_id = secrets.token_urlsafe(9)
        path = self.folder / upload_id / plain_name(name)
        digest, size = hashlib.sha256(), 0
        path.parent.mkdir(mode=0o700)
        self._coming += 1
        try:
            with path.open("xb") as file:
                async for part in content:
                    digest.update(part)
                    size += len(part)
                    await to_thread.run_sync(file.write, part)
            if not size:
                raise UsageError("the upload is empty")
        except BaseException:
            shutil.rmtree(path.parent, ignore_errors=True)
            raise
        finally:
            self._coming -= 1
        self._kept[upload_id] = upload = Upload(upload_id, person, path, size, digest.hexdigest())
        counts = Counter(one.person for one in self._kept.values())
        if counts[person] > KEPT:
            self._drop_oldest_of(person)
        elif len(self._kept) > KEPT_OF_ALL:
            self._drop_oldest_of(max(counts, key=counts.__getitem__))
        return upload

    def _drop_oldest_of(self, person: str) -> None:
        oldest = next(one for one in self._kept.values() if one.person == person)
        del self._kept[oldest.upload_id]
        shutil.rmtree(oldest.path.parent, ignore_errors=True)

    def of(self, person: str, upload_id: str) -> Upload | None:
        """An upload of this person; None for those of others and for what is gone."""
        found = self._kept.get(upload_id)
        return found if found is not None and found.person == person else None

    def close(self) -> None:
        """Remove all of them."""
        self._kept.clear()
        if "folder" in vars(self):
            shutil.rmtree(self.folder, ignore_errors=True)


def plain_name(name: str) -> str:
    """A file name of letters, figures, dots and dashes that keeps its ending.

    >>> plain_name("../../my clip (1).MP4")
    'my-clip-1-.mp4'
    """
    stem, dot, ending = name.replace("\\", "/").rpartition("/")[2].rpartition(".")
    stem, ending = (stem, ending) if dot else (ending, "")
    plain = re.sub(r"[^A-Za-z0-9_-]+", "-", stem)[:80].lstrip("-") or "target"
    kind = re.sub(r"[^a-z0-9]", "", ending.lower())[:8]
    return f"{plain}.{kind}" if kind else plain
