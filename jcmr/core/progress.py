"""How far a long loop is, for people."""

import time
from collections.abc import Callable

from absl import logging

from jcmr.core.clock import clock

REPORT_SECONDS = 10


def make_progress(what: str, total: int) -> Callable[[int], None]:
    """Builds `progress(done)`, which logs every ten seconds how far it is, and for how long yet."""
    began = told = time.monotonic()

    def progress(done: int) -> None:
        nonlocal told
        now = time.monotonic()
        if now - told > REPORT_SECONDS:
            told = now
            rate = done / (now - began)
            left = clock((total - done) / rate) if done else "?"
            logging.info("%s: %d of %d, %.0f a second, %s left", what, done, total, rate, left)

    return progress
