"""The audit log of a gallery: who searched or deleted what, when and why.

One JSON file a record, audit/<number>.json, each with its own hash and that of the one before: a changed record, or one removed
from between others, is found. Removal of the newest ones is not; keep a copy of the log elsewhere where that matters.
Records are written before an answer is given out. They name ids, never features or pictures.
"""

import getpass
import hashlib
import json
import re
import socket
from datetime import UTC, datetime
from typing import Any

from pipeline.errors import PipelineError, UsageError
from pipeline.gallery import Gallery
from pipeline.storage import Location, is_utf8

TRIES = 100  # writers that may come in between


def append_record(gallery: Gallery, action: str, fields: dict[str, Any]) -> str:
    """Append one record and return its name; action is "search", "evaluate", "forget" or "compact".

    who, host and time are added. On local disks writers take turns; on object stores, where a file cannot be created exclusively
    here, two writers in the same instant may take the same number. Raises UsageError for text that is not Unicode, and
    PipelineError when the log cannot be written: then there must be no answer either.
    """
    folder = gallery.location.join("audit")
    if not is_utf8(json.dumps(fields, ensure_ascii=False)):
        raise UsageError("the reason, case or ids hold characters that are not Unicode; they go into the audit log")
    for _ in range(TRIES):
        files = _records(folder)
        record = {
            "action": action,
            "at": datetime.now(UTC).isoformat(),
            "who": user(),
            "host": socket.gethostname(),
            **fields,
            "previous": hashlib.sha256(files[-1].read_bytes()).hexdigest() if files else None,
        }
        record["sha256"] = _hash_of(record)  # the last record has no other that vouches for it
        name = f"{int(files[-1].name.removesuffix('.json')) + 1 if files else 0:010d}.json"
        if folder.join(name).write_atomically((json.dumps(record, ensure_ascii=False) + "\n").encode(), exclusive=True):
            return name
    raise PipelineError(f"the audit log {folder.uri} is being written by too many at once; try again")


def read_records(gallery: Gallery) -> list[dict[str, Any]]:
    """All records, oldest first."""
    return [json.loads(file.read_bytes()) for file in _records(gallery.location.join("audit"))]


def verify(gallery: Gallery) -> list[str]:
    """What is wrong with the log, in words; an empty list when the chain is whole."""
    faults, previous = [], None
    for number, file in enumerate(_records(gallery.location.join("audit"))):
        data = file.read_bytes()
        if file.name != f"{number:010d}.json":
            faults.append(f"the record before {file.name} is missing")
            break
        try:
            record = json.loads(data)
            claimed, own = record["previous"], record.pop("sha256")
        except (ValueError, KeyError, TypeError):
            faults.append(f"{file.name} is damaged")
            break
        if own != _hash_of(record):
            faults.append(f"{file.name} was changed")
        if claimed != previous:
            faults.append(f"the record before {file.name} was changed, or {file.name} was")
        previous = hashlib.sha256(data).hexdigest()
    return faults


def user() -> str:
    """The account that this process runs under."""
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # no passwd entry, as in some containers
        return "unknown"


def _hash_of(record: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(record, ensure_ascii=False).encode()).hexdigest()


def _records(folder: Location) -> list[Location]:
    return [file for file in folder.list() if re.fullmatch(r"\d{10}\.json", file.name)]
