"""How far a command is: one line on stderr, so that stdout has the results alone."""

import math
import sys
import time


def say(line: str) -> None:
    """A line of its own."""
    print(line, file=sys.stderr, flush=True)


class RenewedLine:
    """A line that renews itself twice a second on a terminal; into a log it comes anew every 10 s.

    at_once: show the first one that comes, not only one that comes later. brief: show the end of what took less than that, too.
    """

    def __init__(self, *, at_once: bool = True, brief: bool = True) -> None:
        self.terminal = sys.stderr.isatty()
        self.last = -math.inf if at_once else time.monotonic()
        self.ends = brief

    def show(self, line: str, finished: bool) -> None:
        """Show it if it is time, or the end."""
        now = time.monotonic()
        if now - self.last < (0.5 if self.terminal else 10) and not (finished and self.ends):
            return
        self.last, self.ends = now, True
        if self.terminal:
            print(f"\r\x1b[K{line}", end="\n" if finished else "", file=sys.stderr, flush=True)
        else:
            say(line)


def time_left(seconds: float, done: int, total: int) -> str:
    """What is left of a work of which `done` took so many seconds."""
    return f"{seconds / done * (total - done):.0f} s left" if done else "time left unknown"
