"""How long to keep looking at a ring after work arrived, before paying for a doorbell again.

A doorbell over vfio-user costs the guest tens of microseconds; a look at the ring costs us one. So after work the
device polls for a bounded time with notifications suppressed. The time adapts: a ring whose next request usually
comes much later than any window would catch is hardly polled, so an idle or slow guest costs no CPU.
"""

from __future__ import annotations

DEFAULT_MIN_NS = 10_000
# A stock guest that is being polled comes back within 100-200 us; one that has to ring a doorbell first needs about as
# long again. The window must catch the second kind too, or a ring that once fell out of polling never gets back in.
DEFAULT_MAX_NS = 400_000
GROW_FROM_NS = 10_000  # the window grows from here when it had shrunk to less


class PollWindow:
    """The adaptive window of one ring. Times are nanoseconds of one monotonic clock, given by the caller."""

    __slots__ = ("_last_work_ns", "max_ns", "min_ns", "window_ns")

    def __init__(self, min_ns: int = DEFAULT_MIN_NS, max_ns: int = DEFAULT_MAX_NS) -> None:
        """`max_ns` 0 means never poll; ValueError unless 0 <= min_ns <= max_ns."""
        if not 0 <= min_ns <= max_ns:
            raise ValueError(f"poll window needs 0 <= min <= max, not {min_ns}..{max_ns} ns")
        self.min_ns = min_ns
        self.max_ns = max_ns
        # Start wide: the first burst (a driver probing) is latency bound, and one futile window costs max_ns once.
        self.window_ns = max_ns
        self._last_work_ns: int | None = None

    def on_work(self, now_ns: int) -> None:
        """Work was found at `now_ns`: the window starts again, wider or narrower by what the gap has taught."""
        last, self._last_work_ns = self._last_work_ns, now_ns
        if last is None:
            return
        gap = now_ns - last
        if gap <= self.window_ns:
            return  # caught, or a clock that stood still: the window is right
        if gap <= self.max_ns:
            self.window_ns = min(self.max_ns, max(self.window_ns * 2, GROW_FROM_NS))
        else:
            # No window we allow would have caught it: what was polled was wasted.
            self.window_ns = max(self.min_ns, self.window_ns // 2)

    def should_poll(self, now_ns: int) -> bool:
        """Whether to look once more instead of re-enabling notifications; False before the first work."""
        last = self._last_work_ns
        return last is not None and now_ns - last < self.window_ns
