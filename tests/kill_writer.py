"""Kills a writer of a store with SIGKILL before each line that it would run, one line at a time.

python tests/kill_writer.py FOLDER save|swap. Prints how many places there were; fails where one of
them leaves anything but the old state or the new.
"""

import os
import shutil
import signal
import sys
from pathlib import Path

import numpy as np

from jcmr.index import store as module
from jcmr.index.snapshot import Snapshot, make_snapshot

OLD, NEW = 0.0, 1.0


def snapshot(value: float) -> Snapshot:
    vectors = np.full((50, 3), value)
    return make_snapshot(np.arange(50), vectors, [{"value": value}] * 50, encoder="e")


def write(store: module.Store, action: str) -> None:
    if action == "save":
        store.save("new", snapshot(NEW))
    else:
        store.swap("live", "new")


def die_at(place: int) -> None:
    """Kills this process when it is about to run line number `place` of the store's code."""
    seen = 0

    def trace(frame, event, _):
        nonlocal seen
        if frame.f_code.co_filename != module.__file__:
            return None
        if event == "line":
            if seen == place:
                os.kill(os.getpid(), signal.SIGKILL)
            seen += 1
        return trace

    sys.settrace(trace)


def value(store: module.Store, name: str) -> float:
    """Of a snapshot that is whole, every file of it."""
    loaded = store.load(name)
    values = {float(x) for x in np.unique(loaded.vectors)} | {p["value"] for p in loaded.payloads}
    assert len(values) == 1 and len(loaded) == 50, values
    return values.pop()


def main(folder: Path, action: str) -> None:
    # A killed process loses nothing that it gave to the kernel, so that the disk need not be waited
    # for; the places before and after each call stay.
    os.fsync = lambda handle: None
    store = module.Store(folder)
    store.save("old", snapshot(OLD))
    store.swap("live", "old")
    if action == "swap":
        store.save("new", snapshot(NEW))
    before, place, died = store.read_alias("live"), 0, True
    while died:
        child = os.fork()
        if not child:
            die_at(place)
            write(store, action)
            os._exit(0)
        died = os.WIFSIGNALED(os.waitpid(child, 0)[1])
        alias = store.read_alias("live")
        assert alias in (before, ("new", before.generation + 1)), alias
        assert value(store, "old") == OLD
        there = "new" in store.names()
        assert not there or value(store, "new") == NEW
        assert died or (there if action == "save" else alias.snapshot == "new")
        # What was left behind is in nobody's way: the next one writes over it.
        if action == "save" and there:
            shutil.rmtree(store.snapshot_folder("new"))
        if alias.snapshot == "new":
            before = store.swap("live", "old")
        place += 1
    print(place)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
