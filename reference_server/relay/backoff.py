"""The wait after a failed attempt: exponential backoff with full jitter and a cap.

Full jitter, the whole wait at random between 0 and the bound: relays that failed together, because the
receiver was down, do not come back together.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

# 2^64 times any wait is beyond every cap, and still a float.
_DOUBLINGS_MAX = 64


@dataclass(frozen=True)
class Backoff:
    """Waits up to base_s after the first attempt, up to twice as long after each further one, up to cap_s."""

    base_s: float
    cap_s: float
    random: random.Random

    def bound_s(self, attempt: int) -> float:
        """The longest wait after this attempt, counted from 1."""
        return min(self.cap_s, self.base_s * 2.0 ** min(attempt - 1, _DOUBLINGS_MAX))

    def wait_s(self, attempt: int) -> float:
        """A wait after this attempt, counted from 1."""
        return self.random.uniform(0.0, self.bound_s(attempt))
