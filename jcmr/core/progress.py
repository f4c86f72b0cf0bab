"""How far a long loop is, for people."""

import sys
import time
from collections.abc import Callable
from functools import partial

from absl import logging

from jcmr.core.clock import clock

INTERVAL = 10.0
"""Seconds between two lines."""


def printer() -> Callable[[str], None]:
    """Prints lines to the standard output of now: it may be silenced while a library works."""
    return partial(print, file=sys.stdout, flush=True)


class Progress:
    """Says now and then how much is done, how fast, and how long the rest takes."""

    def __init__(self, what: str, total: int, say: Callable[[str], None] = logging.info):
        """Counts to `total` things called `what`."""
        self.what, self.total, self.say, self.done = what, total, say, 0
        self.began = self.said = time.monotonic()

    def __call__(self, done: int) -> None:
        """So many are done (padding is none of them); a loop that had something to say also says
        that it has ended.
        """
        done = min(done, self.total)
        self.done = done
        now = time.monotonic()
        ended = done >= self.total and self.said > self.began
        if now - self.said < INTERVAL and not ended:
            return
        self.said = now
        rate = done / max(now - self.began, 1e-9)
        left = clock((self.total - done) / rate) if done else "?"
        self.say(f"{self.what}: {done:,} of {self.total:,}, {rate:,.0f} per second, {left} left")

    def step(self, count: int = 1) -> None:
        """So many more are done."""
        self(self.done + count)
