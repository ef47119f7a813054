"""What every command shares: exit codes and errors as one sentence on stderr instead of a traceback."""

import functools
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import typer

from pipeline.errors import PipelineError, UsageError

DONE, FAILED, BAD_USAGE, SOME_REJECTED = 0, 1, 2, 3


def run(command: Callable[..., Any]) -> None:
    """Run one command function as a program.

    Exit codes: 0 done; 1 failed; 2 bad usage; 3 done, but some inputs were rejected and --strict was given. A command raises
    `typer.Exit(code)` for the last.
    """
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)

    @functools.wraps(command)  # typer would end an interrupted command without a word
    def interruptible(*arguments: Any, **flags: Any) -> None:
        try:
            command(*arguments, **flags)
        except KeyboardInterrupt:
            stop("interrupted; run the same command again to go on", 130)

    app.command()(interruptible)
    try:
        app()
    except UsageError as error:
        stop(str(error), BAD_USAGE)
    except PipelineError as error:
        stop(str(error), FAILED)


def stop(sentence: str, code: int) -> None:
    """Print one sentence on stderr and end the process."""
    print(f"error: {sentence}", file=sys.stderr)
    sys.exit(code)


def parse_time(text: str | None) -> datetime | None:
    """A time flag as an aware datetime; UTC unless the text names a zone. Raises UsageError."""
    if text is None:
        return None
    try:
        time = datetime.fromisoformat(text)
        return time.replace(tzinfo=UTC) if time.tzinfo is None else time.astimezone(UTC)
    except (ValueError, OverflowError) as error:
        raise UsageError(f"{text!r} is not a time in ISO 8601, for example 2026-03-01T14:30:00Z") from error
