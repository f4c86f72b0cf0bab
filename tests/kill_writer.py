"""Kills a writer of a store with SIGKILL before each line that it would run, one line at a time.

python tests/kill_writer.py FOLDER save|swap. Prints how many places there were; fails where one of
them leaves anything but the old state or the new.
"""

import os
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
    place = 0
    while True:
        store = module.Store(folder / str(place))
        store.save("old", snapshot(OLD))
        if action == "swap":
            store.save("new", snapshot(NEW))
        store.swap("live", "old")
        child = os.fork()
        if not child:
            die_at(place)
            write(store, action)
            os._exit(0)
        died = os.WIFSIGNALED(os.waitpid(child, 0)[1])
        alias = store.read_alias("live")
        assert value(store, "old") == OLD
        assert alias in (("old", 0), ("new", 1)), alias
        if "new" in store.names():
            assert value(store, "new") == NEW
        assert value(store, alias.snapshot) == (NEW if alias.snapshot == "new" else OLD)
        if not died:
            assert action == "save" or alias.snapshot == "new"
            break
        if "new" not in store.names() or action == "swap":
            write(store, action)  # what was left behind is in nobody's way
            assert value(store, "new") == NEW
        place += 1
    print(place)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
