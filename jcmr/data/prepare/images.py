"""Image files on their way into a prepared folder: smaller, by several processes, with a count."""

import argparse
import contextlib
import functools
import multiprocessing
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from jcmr.core.progress import Progress, printer
from jcmr.data.image import shrink_file
from jcmr.data.tfds_builder import Encode


def add_image_arguments(parser: argparse.ArgumentParser) -> None:
    """Options on how images are stored."""
    parser.add_argument(
        "--size", type=int, default=256,
        help="pixels of the shorter side of the stored images; larger ones are shrunk once, to "
        "JPEG files of quality 95, which makes training read less and decode faster. "
        "0 keeps every file as it is, as the official code reads them (default 256)",
    )  # fmt: skip
    parser.add_argument(
        "--workers", type=int, default=os.cpu_count() or 1, help="processes (default: all cores)"
    )
    parser.add_argument(
        "--strict", action="store_true",
        help="stop at an image that cannot be read; otherwise it is stored as it is, counted, and "
        "left out by training",
    )  # fmt: skip


@contextlib.contextmanager
def shrinking(size: int, workers: int, strict: bool, total: int) -> Iterator[Encode]:
    """Gives `encode(files)`, which yields what is stored of each; see `add_image_arguments`.

    `total` is how many files there will be. What could not be read is printed.

    Raises:
      ValueError: a file cannot be read, and that is to be strict.
    """
    shrink = functools.partial(shrink_file, size=size)
    unreadable: list[str] = []
    with contextlib.ExitStack() as stack:
        if workers > 1 and size:
            # JAX runs threads: a forked child could inherit a lock that nobody will release.
            context = multiprocessing.get_context("spawn")
            pool = stack.enter_context(context.Pool(min(workers, total)))
            run = functools.partial(pool.imap, chunksize=8)
        else:
            run = map
        counter = Progress("images", total, printer())

        def encode(files: Sequence[Path]) -> Iterator[bytes]:
            for content, problem in run(shrink, files):
                if problem and strict:
                    raise ValueError(problem)
                if problem:
                    unreadable.append(problem)
                    counter.say(f"{problem} It is kept as it is ({len(unreadable)} so far).")
                counter.step()
                yield content

        yield encode
