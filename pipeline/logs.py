"""Structured logs: one JSON object a line, with the job, and the video where there is one, as fields; no secret among them.

Library code logs to children of the logger "coattention" and gives fields by `extra`:

    logging.getLogger("coattention.ingest").warning("rejected", extra={"video_id": id, "reason": "truncated"})

Without `start` nothing is written anywhere; a command starts it when asked for with --log-format json.
"""

import io
import json
import logging
import os
import re
import sys
import uuid
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

from pipeline.errors import UsageError

ROOT = logging.getLogger("coattention")
ROOT.addHandler(logging.NullHandler())
ROOT.propagate = False
ROOT.setLevel(logging.INFO)

_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime"}
_NAMES = r"signature|credential|security-token|access_?key(?:_?id)?|secret\w*|token|password|api_?key|sig"
_SECRETS = (
    (re.compile(r"(?<=://)[^/\s@]+@"), "***@"),
    (re.compile(rf"(?i)\b((?:[\w-]*[-_])?(?:{_NAMES}))=[^&\s\"']+"), r"\1=***"),
    (re.compile(r"\b(?:AKIA|ASIA)[0-9A-Z]{16}\b"), "***"),
    (re.compile(r"(?i)\b(bearer|basic) [A-Za-z0-9._~+/=-]{8,}"), r"\1 ***"),
)


def without_secrets(text: str) -> str:
    """The text with user names and passwords of uris, signatures, tokens and access keys replaced by ***."""
    for pattern, replacement in _SECRETS:
        text = pattern.sub(replacement, text)
    return text


class JsonLines(logging.Formatter):
    """Formats a record as one line of JSON: at (UTC), level, logger, message, job, and the record's own extra fields."""

    def __init__(self, job: str) -> None:
        super().__init__()
        self.job = job

    def format(self, record: logging.LogRecord) -> str:
        fields: dict[str, Any] = {
            "at": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            "job": self.job,
        }
        fields |= {name: value for name, value in vars(record).items() if name not in _STANDARD and not name.startswith("_")}
        if record.exc_info:
            fields["traceback"] = self.formatException(record.exc_info)
        return json.dumps(_cleaned(fields), default=str)


def start(file: str | Path | None = None) -> logging.Handler:
    """Write records as JSON lines to stderr, or append them to a file. Raises UsageError for a file that cannot be written."""
    try:
        stream: IO[str] = sys.stderr if file is None else Path(file).open("a", encoding="utf-8")  # noqa: SIM115 - kept open
    except OSError as error:
        raise UsageError(f"the log file {file} cannot be written: {error.strerror}") from error
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JsonLines(job_id()))
    ROOT.addHandler(handler)
    return handler


def stop(handler: logging.Handler) -> None:
    """Undo `start`."""
    ROOT.removeHandler(handler)
    if isinstance(handler, logging.StreamHandler) and handler.stream is not sys.stderr:
        handler.stream.close()


class StderrLines(io.TextIOBase):
    """Stands in for stderr while logs go there: what is printed for people becomes the message of one record a line."""

    def __init__(self, command: str) -> None:
        self.logger = ROOT.getChild(command)
        self.rest = ""

    def writable(self) -> bool:
        return True

    def write(self, text: str) -> int:
        *lines, self.rest = (self.rest + text).split("\n")
        for line in filter(str.strip, lines):
            self.logger.log(logging.ERROR if line.startswith("error: ") else logging.INFO, "%s", line)
        return len(text)


_PROCESS_JOB = f"local-{uuid.uuid4().hex[:12]}"


def job_id() -> str:
    """What names this run in every line: the id that the job was submitted under, or one made up for this process."""
    if config := os.environ.get("RAY_JOB_CONFIG_JSON_ENV_VAR"):
        try:
            return str(json.loads(config)["metadata"]["job_submission_id"])
        except (ValueError, KeyError, TypeError):
            pass
    return _PROCESS_JOB


def _cleaned(value: Any) -> Any:
    if isinstance(value, str):
        return without_secrets(value)
    if isinstance(value, dict):
        return {str(name): _cleaned(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_cleaned(inner) for inner in value]
    return value
