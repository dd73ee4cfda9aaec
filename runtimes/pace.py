"""Which of several ways of answering keeps up with a camera: token budgets of one bundle, or smaller and smaller models."""

from collections import deque
from statistics import median

SEEN = 9  # frames whose median is looked at, so that one hiccup moves nothing
ROOM = 0.7  # of the period: what a frame may take for a better way to be tried
PATIENCE, LONGEST = 60, 7680  # frames before a better way is tried, and after that failed again and again


class Pace:
    """The best of `n` ways, 0 the best and n - 1 the fastest, whose frames take no longer than a period.

    A slower way is left at once; a better one is tried after a while, and after longer each time that it did not keep up.
    """

    def __init__(self, n: int, period_ms: float) -> None:
        self.way = 0
        self._n, self._period = n, period_ms
        self._seen: deque[float] = deque(maxlen=SEEN)
        self._frames, self._patience, self._trying = 0, PATIENCE, False

    def saw(self, busy_ms: float) -> bool:
        """Take note of what a frame took, all of it; whether the way has changed."""
        self._seen.append(busy_ms)
        self._frames += 1
        if len(self._seen) < SEEN:
            return False
        taken = median(self._seen)
        if taken > self._period and self.way < self._n - 1:
            self._patience = min(2 * self._patience, LONGEST) if self._trying else PATIENCE
            self._go(self.way + 1, trying=False)
            return True
        if self._frames >= self._patience:
            self._trying = False  # it has kept up
            if taken < ROOM * self._period and self.way:
                self._go(self.way - 1, trying=True)
                return True
        return False

    def _go(self, way: int, *, trying: bool) -> None:
        self.way, self._trying, self._frames = way, trying, 0
        self._seen.clear()
