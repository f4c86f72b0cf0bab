"""Batches in a reproducible order that can be left and taken up again; the only grain import.

A batch is a pure function of (records, seed, step). The position is therefore one number, the same
for any number of workers and hosts, and nothing has to be replayed to return to it.
"""

import functools
import os
import queue
import signal
import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, Protocol

import grain
import jax
import numpy as np
from absl import flags

from jcmr.core.types import Batch, RandomAccess
from jcmr.data.records import stack, take

Order = Callable[[int, int], np.ndarray]
"""(seed, epoch) -> indices of the examples of that epoch, the same number in every epoch: [n], or
[n, q] where `records.take` makes an example of q of them."""
Transform = Callable[[dict[str, np.ndarray], np.random.Generator], dict[str, np.ndarray]]
"""(example, rng) -> example: augmentation on the host, such as token dropping."""


def shuffled(num_examples: int, seed: int, epoch: int) -> np.ndarray:
    """A new permutation of all examples in each epoch, int64 [n]."""
    return np.random.default_rng([seed, epoch]).permutation(num_examples)


def in_order(num_examples: int, seed: int, epoch: int) -> np.ndarray:
    """All examples as they are stored, int64 [n]."""
    del seed, epoch
    return np.arange(num_examples)


class Batches:
    """The whole training run as a sequence: item `step` is this host's part of global batch `step`.

    Host p of P takes rows p * b to (p + 1) * b of each global batch of P * b examples, so that the
    global batches do not depend on the number of hosts.
    """

    def __init__(
        self,
        records: RandomAccess,
        batch_size: int,
        seed: int,
        order: Order,
        transform: Transform | None,
        num_epochs: int | None,
        host: tuple[int, int],
    ):
        self.records, self.batch_size, self.seed = records, batch_size, seed
        self.order, self.transform, self.host = order, transform, host
        self.epoch_length = len(order(seed, 0))
        self.steps_per_epoch = self.epoch_length // batch_size
        self.num_steps = sys.maxsize if num_epochs is None else num_epochs * self.steps_per_epoch
        self.last_order: tuple[int, np.ndarray] = (-1, np.empty(0, int))

    def __len__(self) -> int:
        """Number of steps."""
        return self.num_steps

    def epoch_order(self, epoch: int) -> np.ndarray:
        """Indices of the examples of `epoch`; the last one asked for is kept."""
        # One tuple is read and replaced as a whole: threads need no lock.
        kept, indices = self.last_order
        if kept != epoch:
            indices = np.asarray(self.order(self.seed, epoch))
            if len(indices) != self.epoch_length:
                raise ValueError(
                    f"The order of epoch {epoch} has {len(indices)} examples and that of epoch 0 "
                    f"has {self.epoch_length}; all epochs must have the same length."
                )
            self.last_order = (epoch, indices)
        return indices

    def __getitem__(self, index: int) -> Batch:
        """This host's rows of the batch of step `index`."""
        step = int(index)
        epoch, offset = divmod(step, self.steps_per_epoch)
        process, num_processes = self.host
        rows = self.batch_size // num_processes
        start = process * rows
        first = offset * self.batch_size + start
        batch = take(self.records, self.epoch_order(epoch)[first : first + rows])
        if self.transform is None:
            return batch
        return stack(
            [
                self.transform(
                    {name: np.asarray(column[row]) for name, column in batch.items()},
                    np.random.default_rng([self.seed, step, start + row]),
                )
                for row in range(rows)
            ]
        )


def start_worker(worker: int, num_workers: int) -> None:
    """Ties a worker process to its parent and keeps it off the accelerator."""
    del worker, num_workers
    import multiprocessing

    jax.config.update("jax_platforms", "cpu")
    # Ctrl-C and SIGTERM are the parent's to handle: it saves first, then closes the workers.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    if parent is not None:
        # A parent that was killed cannot close anything; do not outlive it.
        threading.Thread(target=lambda: (parent.join(), os._exit(1)), daemon=True).start()


def end_workers(running: list[Any]) -> None:
    """Closes grain iterators and lets go of them: they must not live until the interpreter ends."""
    while running:
        running.pop().close()


class Position(NamedTuple):
    """Where a loader stands, and what must not change for that to mean anything."""

    step: int
    seed: int
    batch_size: int
    num_examples: int


class Loader:
    """An iterator over this host's batches whose position can be read and set.

    `get_state()` is the position after the last batch handed out, whatever the workers have read
    ahead. Made by `make_loader`.
    """

    def __init__(self, batches: Batches, workers: int):
        self.batches, self.workers, self.step = batches, workers, 0
        self.steps_per_epoch = batches.steps_per_epoch
        self.running: list[Any] = []
        """The grain iterator, if there is one."""
        # Made here, before any Prefetch: at exit the thread that reads ends before the workers do.
        weakref.finalize(self, end_workers, self.running)

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        """The next batch, numpy arrays [b, ...]."""
        if self.step >= len(self.batches):
            raise StopIteration
        if self.workers == 0:
            batch = self.batches[self.step]
        else:
            # Workers start with the first batch, so that set_state before it costs nothing.
            if not self.running:
                self.running.append(self._start())
            batch = next(self.running[0])
        self.step += 1
        return batch

    def _start(self) -> Any:
        if not flags.FLAGS.is_parsed():  # grain reads absl flags, also in a program without any
            flags.FLAGS.mark_as_parsed()
        inline = grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)
        processes = grain.MultiprocessingOptions(num_workers=self.workers)
        dataset = grain.MapDataset.source(self.batches)[self.step :].to_iter_dataset(inline)
        return iter(dataset.mp_prefetch(processes, worker_init_fn=start_worker))

    def get_state(self) -> dict[str, int]:
        """The position after the last batch handed out, ready for JSON."""
        batches = self.batches
        size = batches.epoch_length
        return Position(self.step, batches.seed, batches.batch_size, size)._asdict()

    def set_state(self, state: dict[str, int]) -> None:
        """Makes the batch after `state` the next one.

        Raises:
          ValueError: the state is of another data set, seed or batch size.
        """
        here, saved = Position(**self.get_state()), Position(**state)
        for field in ("seed", "batch_size", "num_examples"):
            if getattr(here, field) != getattr(saved, field):
                raise ValueError(
                    f"The saved loader position has {field} {getattr(saved, field)}, this run has "
                    f"{getattr(here, field)}. Resume with the configuration and data of the run, "
                    f"or start in a new --workdir."
                )
        self.close()
        self.step = int(saved.step)

    def close(self) -> None:
        """Ends the worker processes; the next batch starts them again."""
        end_workers(self.running)


def make_loader(
    records: RandomAccess,
    batch_size: int,
    seed: int,
    *,
    shuffle: bool = True,
    num_epochs: int | None = None,
    workers: int = 0,
    transform: Transform | None = None,
    order: Order | None = None,
) -> Loader:
    """Batches of `records`, each epoch in a new order, for as many epochs as asked.

    Args:
      records: examples; a method `take(indices) -> batch` is used where there is one.
      batch_size: examples in a global batch; each host gets its equal share. What is left at the
        end of an epoch is dropped.
      seed: decides order and noise.
      shuffle: False reads the records as they are stored.
      num_epochs: None never ends.
      workers: processes that read ahead; 0 reads in the calling thread.
      transform: augmentation of one example. Its generator depends on seed, step and row alone.
      order: a data set's own epoch order, in place of `shuffle`.

    Raises:
      ValueError: no full batch, or hosts that cannot share a batch evenly.
    """
    num_hosts = jax.process_count()
    if batch_size % num_hosts:
        raise ValueError(
            f"A batch of {batch_size} cannot be shared by {num_hosts} hosts; choose "
            f"config.train.batch_size as a multiple of {num_hosts}."
        )
    default = functools.partial(shuffled if shuffle else in_order, len(records))
    host = (jax.process_index(), num_hosts)
    batches = Batches(records, batch_size, seed, order or default, transform, num_epochs, host)
    if batches.steps_per_epoch == 0:
        raise ValueError(
            f"An epoch of {batches.epoch_length} examples does not fill one batch of {batch_size}; "
            f"lower config.train.batch_size."
        )
    return Loader(batches, workers)


class Resumable(Protocol):
    """What `prefetch` reads from."""

    def __next__(self) -> Batch:
        """The next batch."""
        ...

    def get_state(self) -> dict[str, Any]:
        """The position after the last batch."""
        ...

    def set_state(self, state: dict[str, Any]) -> None:
        """Goes to a position."""
        ...

    def close(self) -> None:
        """Frees what reads ahead."""
        ...


def fill(
    source: Resumable,
    put: Callable[[Batch], Batch],
    ready: queue.SimpleQueue,
    free: threading.Semaphore,
    stopped: threading.Event,
) -> None:
    """Body of the prefetch thread: (batch on the device, position after it, error) triples."""
    while True:
        free.acquire()
        if stopped.is_set():
            return
        try:
            batch = put(next(source))
            ready.put((batch, source.get_state(), None))
        except BaseException as error:  # also StopIteration: whatever ends the source ends us
            ready.put((None, None, error))
            return


def stop(
    thread: threading.Thread,
    ready: queue.SimpleQueue,
    free: threading.Semaphore,
    stopped: threading.Event,
) -> None:
    """Ends a prefetch thread that may be waiting for a free place, and drops what it read."""
    stopped.set()
    free.release()
    thread.join(timeout=30.0)
    while not ready.empty():
        ready.get()


class Prefetch:
    """Puts batches on the device in a thread while the step computes. Made by `prefetch`.

    `get_state()` is the position after the batch that the consumer took last, not the one that the
    thread reached: a checkpoint made from it continues with the next batch that was not trained on.
    """

    def __init__(self, source: Resumable, put: Callable[[Batch], Batch], size: int):
        self.source, self.put, self.size = source, put, size
        self.state = source.get_state()
        self.error: BaseException | None = None
        self._stop: Callable[[], Any] | None = None

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        """The next batch, as `put` left it; an error of the thread is raised here."""
        if self.error is not None:
            raise self.error
        if self._stop is None:
            self._start()
        batch, state, error = self._ready.get()
        self._free.release()
        if error is not None:
            self.error = error
            raise error
        self.state = state
        return batch

    def _start(self) -> None:
        self._ready: queue.SimpleQueue = queue.SimpleQueue()
        self._free = threading.Semaphore(self.size)
        stopped = threading.Event()
        # The thread does not hold `self`: an abandoned Prefetch is collected, which ends it.
        thread = threading.Thread(
            target=fill,
            args=(self.source, self.put, self._ready, self._free, stopped),
            name="prefetch",
            daemon=True,
        )
        self._stop = weakref.finalize(self, stop, thread, self._ready, self._free, stopped)
        thread.start()

    def get_state(self) -> dict[str, Any]:
        """The position after the last batch handed out."""
        return dict(self.state)

    def set_state(self, state: dict[str, Any]) -> None:
        """Makes the batch after `state` the next one; what was read ahead is dropped."""
        self._end()
        self.source.set_state(state)
        self.state = self.source.get_state()

    def _end(self) -> None:
        if self._stop is not None:
            self._stop()
        self._stop = self.error = None

    def close(self) -> None:
        """Ends the thread and the source's workers; the next batch would start them again."""
        self._end()
        self.source.set_state(self.state)  # the thread had read ahead of what was handed out
        self.source.close()


def prefetch(source: Resumable, put: Callable[[Batch], Batch], size: int = 2) -> Prefetch:
    """Reads up to `size` batches of `source` ahead and places them with `put`, in a thread."""
    return Prefetch(source, put, size)
