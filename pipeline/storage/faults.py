"""What a file system or an object store refuses, as one kind of error: a sentence that names the place and the cause."""

import errno
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager

import pyarrow as pa

from pipeline.errors import PipelineError

_MISSING = re.compile(r"AWS Error NO_SUCH_(KEY|BUCKET)|HTTP status 404|Status\(NOT_FOUND")
_DENIED = re.compile(
    r"AWS Error (ACCESS_DENIED|INVALID_ACCESS_KEY|SIGNATURE_DOES_NOT_MATCH)|HTTP status 40[13]"
    r"|Status\((PERMISSION_DENIED|UNAUTHENTICATED)"
)
_BUSY = re.compile(
    r"AWS Error (SLOW_DOWN|THROTTLING|INTERNAL_FAILURE|SERVICE_UNAVAILABLE|NETWORK_CONNECTION|REQUEST_TIMEOUT)"
    r"|HTTP status (429|5\d\d)|Status\((UNAVAILABLE|DEADLINE_EXCEEDED|RESOURCE_EXHAUSTED|INTERNAL)"
)
_NOT_WHOLE = re.compile(r"^\d+ requested and \d+ written$")  # NumPy's words, without a number, for a full disk
S3_TRIES = 12  # with pauses that double from 25 ms: 51 s, about as for Google's store; pyarrow's own end after 6 s
_NOT_ANSWERING = {errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.EHOSTDOWN, errno.EHOSTUNREACH, errno.ENOTCONN}


class StorageError(PipelineError):
    """A file or bucket cannot be read or written.

    kind: "missing", "permission_denied", "no_space", "read_only", "unavailable" (a store that throttles, fails or does not
    answer, after retries) or "other".
    """

    def __init__(self, message: str, kind: str) -> None:
        super().__init__(message)
        self.kind = kind

    def __reduce__(self) -> tuple[type, tuple[str, str]]:
        return type(self), (str(self), self.kind)

    def reject_reason(self, otherwise: str) -> str:
        """Why a video is refused that this keeps from being read; `otherwise` where the file is to blame."""
        if self.kind in ("missing", "permission_denied"):
            return self.kind
        return "unavailable" if self.kind in ("unavailable", "no_space", "read_only") else otherwise


@contextmanager
def explained(action: str, uri: str) -> Iterator[None]:
    """Within the block, what the storage refuses is a StorageError: "cannot ACTION URI: the cause"."""
    try:
        yield
    except (OSError, pa.ArrowException) as error:
        kind, cause = _cause(error)
        raise StorageError(f"cannot {action} {uri}: {cause}", kind) from error


def _cause(error: Exception) -> tuple[str, str]:
    number, text = getattr(error, "errno", None), str(error)
    if isinstance(error, FileNotFoundError) or _MISSING.search(text):
        return "missing", "there is no such file, folder or bucket"
    if isinstance(error, PermissionError) or _DENIED.search(text):
        return "permission_denied", "permission denied"
    if number in (errno.ENOSPC, errno.EDQUOT) or _NOT_WHOLE.search(text):
        return "no_space", "no space is left on the device"
    if number in _NOT_ANSWERING:
        return "unavailable", f"the file system does not answer: {os.strerror(number)}"
    if number == errno.EROFS:
        return "read_only", "the file system is read-only"
    if _BUSY.search(text):
        return "unavailable", f"the store throttles, fails or does not answer, after {S3_TRIES} tries: {' '.join(text.split())}"
    return "other", " ".join(text.split())
