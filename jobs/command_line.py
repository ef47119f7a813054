"""What every command shares: exit codes and errors as one sentence on stderr instead of a traceback."""

import contextlib
import functools
import gc
import inspect
import os
import re
import shlex
import sys
import time
import unicodedata
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, tzinfo
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from pipeline import logs
from pipeline.backbone.spec import backbone_names
from pipeline.errors import PipelineError, UsageError
from pipeline.storage.location import Location, resolve

BACKBONE_HELP = f"Backbone by name ({', '.join(backbone_names())}), or the path of an ONNX file with a sidecar .json."
DONE, FAILED, BAD_USAGE, SOME_REJECTED = 0, 1, 2, 3
GalleryFolder = Annotated[str, typer.Option(help="Folder or bucket prefix of the gallery.")]
InsecureCluster = Annotated[
    bool,
    typer.Option("--insecure-cluster", help="Take a Ray cluster that asks for no token: who reaches its ports can run code."),
]
Endpoints = Annotated[
    list[str] | None,
    typer.Option(
        "--endpoint",
        help="URL of an object store that uris in the data may name, besides those in this command; may be repeated.",
    ),
]
Cameras = Annotated[
    str,
    typer.Option(help="auto takes off what each camera does to everybody it films; ignore does not tell cameras apart."),
]
Address = Annotated[str | None, typer.Option(help="Ray cluster to use [default: RAY_ADDRESS, else this machine].")]
# Before Ray is imported: what still waits for its workers when a command is interrupted would start another one.
os.environ.setdefault("RAY_ENABLE_AUTO_CONNECT", "0")
_JOINERS = "\u200c\u200d"  # Persian and Indian names are written with them
LOG_FLAGS: dict[str, tuple[str | None, Any]] = {
    "log_format": (
        "text",
        Annotated[
            str,
            typer.Option(
                envvar="COATTENTION_LOG_FORMAT", help="Logs for people (text), or one JSON object a line on stderr (json)."
            ),
        ],
    ),
    "log_file": (
        None,
        Annotated[
            str | None, typer.Option(envvar="COATTENTION_LOG_FILE", help="File that JSON logs are appended to instead of stderr.")
        ],
    ),
}


def run(command: Callable[..., Any]) -> None:
    """Run one command function as a program.

    Exit codes: 0 done; 1 failed; 2 bad usage; 3 done, but some inputs were rejected and --strict was given. A command raises
    `typer.Exit(code)` for the last.
    """
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)

    @functools.wraps(command)  # typer would end an interrupted command without a word
    def interruptible(*arguments: Any, log_format: str = "text", log_file: str | None = None, **flags: Any) -> None:
        with logged(command.__name__, log_format, log_file, flags):
            try:
                command(*arguments, **flags)
            except KeyboardInterrupt:
                stop("interrupted; run the same command again to go on", 130)
            except UsageError as error:
                stop(str(error), BAD_USAGE)
            except PipelineError as error:
                stop(str(error), FAILED)
            except OSError as error:  # of a file that no part of the pipeline explains; anything else is a fault of the program
                stop(f"{error.filename or 'a file'} cannot be used: {error.strerror or error}", FAILED)

    own = inspect.signature(command)
    flags = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)
        for name, (default, annotation) in LOG_FLAGS.items()
    ]
    interruptible.__signature__ = own.replace(parameters=[*own.parameters.values(), *flags])  # type: ignore[attr-defined]
    interruptible.__annotations__ = {**command.__annotations__, **{name: flag[1] for name, flag in LOG_FLAGS.items()}}
    app.command()(interruptible)
    try:
        app()
    finally:
        gc.freeze()  # the objects of a loaded PyTorch are not looked through for cycles on the way out: 0.3 s


@contextlib.contextmanager
def logged(command: str, log_format: str, log_file: str | None, flags: dict[str, Any]) -> Iterator[None]:
    """Structured logs for the time of a command, if asked for, with a line when it starts and one when it ends."""
    if log_format not in ("text", "json"):
        stop(f"--log-format is text or json, not {log_format!r}", BAD_USAGE)
    if log_format == "text":
        yield
        return
    try:
        handler = logs.start(log_file)
    except UsageError as error:
        stop(str(error), BAD_USAGE)
    logger, began, code = logs.ROOT.getChild(command), time.monotonic(), FAILED
    redirected = contextlib.nullcontext() if log_file else contextlib.redirect_stderr(logs.StderrLines(command))
    given = {name: value for name, value in flags.items() if value is not None}
    logger.info("started", extra={"command": command, "flags": given})
    try:
        with redirected:
            yield
        code = DONE
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else FAILED
        raise
    except typer.Exit as end:
        code = end.exit_code
        raise
    except Exception:
        logger.exception("crashed", extra={"command": command})
        raise
    finally:
        seconds = round(time.monotonic() - began, 3)
        logger.info("ended", extra={"command": command, "exit_code": code, "seconds": seconds})
        logs.stop(handler)


def printable(text: str) -> str:
    """The text with a question mark for all that would steer a terminal or turn its reading direction.

    For names, ids and messages: they come from files that anybody may have named. Blanks of any width and the marks that join
    letters stay as they are.

    >>> printable("camera\\x1b[2J \\u202e4pm.exe")
    'camera?[2J ?4pm.exe'
    """
    return "".join(one if one.isprintable() or unicodedata.category(one) == "Zs" or one in _JOINERS else "?" for one in text)


def stop(sentence: str, code: int) -> NoReturn:
    """Print one sentence on stderr and end the process."""
    print(printable(f"error: {sentence}"), file=sys.stderr)
    sys.exit(code)


def as_called(command: str) -> str:
    """The command line of this process as `python -m jobs.COMMAND ...`, for whoever wants to run it again."""
    return shlex.join(["python", "-m", f"jobs.{command}", *sys.argv[1:]])


def output_folder(out: str, what: str) -> Location:
    """The folder that a command writes into, here or in a bucket. what: "results are written". Raises UsageError for a file."""
    folder = resolve(out)
    if folder.info().is_file:
        raise UsageError(f"{out} is a file; {what} into a folder")
    return folder


def local_folder(path: Path) -> Path:
    """A folder that a command works in, here. Raises UsageError for the uri of a bucket."""
    if re.match(r"[a-z0-9]+:/", str(path)):
        raise UsageError(f"{path}: this command writes into a folder of this machine, not into a bucket")
    return path


def now_words() -> str:
    """This moment, for people."""
    return f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S} UTC"


def parse_time(text: str | None, zone: tzinfo = UTC) -> datetime | None:
    """A time flag as an aware datetime; of `zone` unless the text names one. Raises UsageError."""
    if text is None:
        return None
    try:
        time = datetime.fromisoformat(text)
        return (time.replace(tzinfo=zone) if time.tzinfo is None else time).astimezone(UTC)
    except (ValueError, OverflowError) as error:
        raise UsageError(f"{text!r} is not a time in ISO 8601, for example 2026-03-01T14:30:00Z") from error
