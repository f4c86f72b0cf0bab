"""What a long preparation says while it works."""

import sys
import time

from jcmr.core.clock import clock

INTERVAL = 10.0
"""Seconds between two lines."""


class Progress:
    """Prints now and then how much is done, how fast, and how long the rest takes."""

    def __init__(self, total: int, what: str):
        """Counts to `total` things called `what`."""
        self.total, self.what, self.done = total, what, 0
        self.stream = sys.stdout  # of now: it may be silenced while a library works
        self.began = self.said = time.monotonic()

    def step(self, count: int = 1) -> None:
        """So many more are done."""
        self.done += count
        now = time.monotonic()
        if self.done < self.total and now - self.said < INTERVAL:
            return
        self.said = now
        rate = self.done / max(now - self.began, 1e-9)
        left = clock((self.total - self.done) / rate)
        what = f"{self.what}: {self.done:,} of {self.total:,}"
        self.say(f"{what}, {rate:,.0f} per second, {left} left")

    def say(self, line: str) -> None:
        """Prints a line."""
        print(line, file=self.stream, flush=True)
