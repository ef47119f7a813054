"""Files on a local disk that are whole or absent, also after a power cut."""

import errno
import fcntl
import os
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import DTypeLike

from pipeline.storage.faults import explained

LEFTOVER_PREFIX = ".writing-"
_LOCK = f"{LEFTOVER_PREFIX}lock"  # in a folder of a disk without hard links; listings leave it out
_NO_FOLDER_SYNC = {errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS}
_NOT_SUPPORTED = {errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EPERM, errno.EMLINK, errno.ENOSYS, errno.EBADF}


def write_local(path: str | Path, content: bytes | Callable[[IO[bytes]], object], exclusive: bool = False) -> bool:
    """`Location.write_atomically` of a local path; what the disk refuses is an OSError."""
    if exclusive and os.path.lexists(path):
        return False
    folder = Path(path).parent
    folder.mkdir(parents=True, exist_ok=True)
    temporary = folder / f"{LEFTOVER_PREFIX}{uuid.uuid4().hex}"
    try:
        with temporary.open("xb") as file:
            if callable(content):
                content(file)
            else:
                file.write(content)
            file.flush()
            os.fsync(file.fileno())
        if not exclusive:
            temporary.replace(path)
        elif not _link(temporary, path):
            return False
    finally:
        temporary.unlink(missing_ok=True)
    sync_folder(folder)
    return True


def _link(temporary: Path, path: str | Path) -> bool:
    """Give the finished file its name if nobody has it."""
    try:
        os.link(temporary, path)
    except FileExistsError:
        return False
    except OSError as error:
        if error.errno not in _NOT_SUPPORTED:
            raise
        # No hard links here (exFAT, some network mounts): look, then rename, one at a time. A lock ends with its process.
        with Path(path).with_name(_LOCK).open("ab") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if os.path.lexists(path):
                return False
            temporary.replace(path)
    return True


def sync_folder(folder: Path) -> None:
    """Let the names in a local folder survive a power cut. Raises OSError, but not where the file system cannot sync folders."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _NO_FOLDER_SYNC:
            raise
    finally:
        os.close(descriptor)


def new_array(path: Path, dtype: DTypeLike, shape: tuple[int, ...]) -> np.memmap:
    """A new .npy file to be written as a memory map, its disk space taken beforehand: on a full disk, writing to a map ends the
    process (SIGBUS). Raises StorageError, leaving nothing.
    """
    with explained("write", str(path)):
        try:
            array: np.memmap = np.lib.format.open_memmap(path, mode="w+", dtype=dtype, shape=shape)
            with path.open("r+b") as file:
                os.posix_fallocate(file.fileno(), 0, os.fstat(file.fileno()).st_size)
        except OSError:
            path.unlink(missing_ok=True)
            raise
        return array
