"""When each decoded frame was recorded: its own stamp where that can be, mended where a recorder wrote nonsense.

The rules, for stamps s in seconds, frames in the order of presentation:

- No stamp: the frame lies evenly between its neighbours that have one, or a frame's duration after the last one.
- A stamp that is not after the one before it, while one of the next LOOKAHEAD frames is: the stamps between are the bad ones, and
  these frames are spread evenly between their neighbours. So one bad stamp mends one stamp.
- A stamp that is not after the one before it, nor are the next ones: the clock was set back, or another recording begins. Time
  goes on by a frame's duration, and what follows counts from there.
- A stamp ahead of the one after it, which fits what came before: that one stamp is bad.
- A stamp more than LONGEST_PAUSE ahead: no pause of a recording but another clock (a counter of 33 bits that ran over is one of
  26 hours). Time goes on by a frame's duration. Shorter gaps are pauses, and stay.
"""

import math
from collections import deque
from collections.abc import Iterable, Iterator
from typing import TypeVar

LOOKAHEAD = 8  # frames that are decoded ahead to judge a stamp by
LONGEST_PAUSE = 12 * 3600.0  # seconds
SHORTEST_STEP = 1e-6  # seconds from frame to frame where times are made up; less of it rounding could take away

Item = TypeVar("Item")


class FrameTimes:
    """Gives the frames of one source their times.

    duration: seconds that a frame lasts by the rate of the source. missing: frames that had no stamp, where the rate does not
    confirm their times; mended: stamps that were replaced; restarts: how often the stamps began anew. They count as the frames
    go by.
    """

    def __init__(self, duration: float) -> None:
        self.duration = duration
        self.missing = self.mended = self.restarts = 0
        self._shift = 0.0  # what our clock is ahead of the stamps'
        self._last: float | None = None

    def of(self, stamped: Iterable[tuple[float | None, Item]]) -> Iterator[tuple[float, Item]]:
        """The items with their times: float, seconds, strictly ascending, on the clock of the first stamp.

        stamped: stamps in seconds (None or not finite: no stamp) and whatever belongs to them. At most LOOKAHEAD + 1 are held.
        """
        source = iter(stamped)
        times: deque[float | None] = deque()
        items: deque[Item] = deque()
        ended = False
        while True:
            while not ended and len(times) <= LOOKAHEAD and self._in_doubt(times):
                following = next(source, None)
                if following is None:
                    ended = True
                else:
                    stamp, item = following
                    times.append(stamp + self._shift if stamp is not None and math.isfinite(stamp) else None)
                    items.append(item)
            if not times:
                return
            if len(times) == 1 and self._on_time(times[0]):  # nearly all frames; the rest of this loop is slow for them
                self._last = times.popleft()
                yield self._last, items.popleft()  # type: ignore[misc]
                continue
            before = self._shift
            for decided in self._decided(list(times)):
                self._last = decided
                times.popleft()
                yield decided, items.popleft()
            if self._shift != before:
                times = deque(time if time is None else time + self._shift - before for time in times)

    def _in_doubt(self, times: deque[float | None]) -> bool:
        """Whether another frame could change what is decided of the first one."""
        if not times:
            return True
        first = times[0]
        if first is None or (self._last is not None and first <= self._last):
            return self._next_good(times) is None
        if self._last is None:
            return len(times) < 3
        return len(times) == 1 and not self._on_time(first)  # what comes on time needs no witness

    def _on_time(self, time: float | None) -> bool:
        return time is not None and self._last is not None and 0 < time - self._last <= 2.5 * self.duration

    def _next_good(self, times: Iterable[float | None]) -> int | None:
        """The first place behind the first one whose time goes on from the last time and leaves room for those between; None
        where there is none.
        """
        for place, time in enumerate(times):
            if not place or time is None:
                continue
            if self._last is None or (place + 1) * SHORTEST_STEP <= time - self._last <= LONGEST_PAUSE:
                return place
        return None

    def _decided(self, times: list[float | None]) -> list[float]:
        """Times of the first frame, and of those behind it that the same decision settles."""
        first, second, third = [*times[:3], None, None][:3]
        if first is None:
            return self._spread(times)
        if self._last is None:
            if (
                second is None
                or second >= first
                or (third is not None and self._fit(third - first, 2) < self._fit(third - second))
            ):
                return [first]
            return self._spread(times)
        if first > self._last:
            ahead = second is not None and self._last < second < first
            if ahead and self._fit(second - self._last, 2) < self._fit(first - self._last):  # type: ignore[operator]
                return self._spread(times)
            if first - self._last <= LONGEST_PAUSE:
                return [first]
        elif self._next_good(times) is not None:
            return self._spread(times)
        known = [time for time in times if time is not None]
        if known[-1] > first or first > self._last:
            self.restarts += 1
            self._shift += self._last + self.duration - first
        else:
            self.mended += 1  # a clock that stands still or runs back says nothing
        return [self._last + self.duration]

    def _fit(self, seconds: float, frames: int = 1) -> float:
        """How far a stretch of time is from what so many frames last, in seconds."""
        return abs(seconds - frames * self.duration)

    def _spread(self, times: list[float | None]) -> list[float]:
        """The frames before the next good one, evenly between it and the last time; where one of both is not there, a frame's
        duration from the other.
        """
        place = self._next_good(times)
        count = place or 1
        missing = sum(time is None for time in times[:count])
        self.mended += count - missing
        good = times[place] if place is not None else None
        if good is None or self._last is None or self._fit(good - self._last, count + 1) > self.duration / 4:
            self.missing += missing
        if good is None:
            return [0.0 if self._last is None else self._last + self.duration]
        if self._last is None:
            return [good - (count - number) * self.duration for number in range(count)]
        step = (good - self._last) / (count + 1)
        return [self._last + (number + 1) * step for number in range(count)]
