"""The loader: order, resuming, workers, prefetching, errors."""

import gc
import json
import subprocess
import sys
import textwrap
import threading
import time

import jax
import numpy as np
import pytest

from jcmr.core import parallel
from jcmr.data import loader, resident
from jcmr.data.loader import Batches, make_loader, prefetch, shuffled
from jcmr.data.records import Arrays, take


class Squares:
    """Examples read one by one, to be used in worker processes."""

    def __init__(self, num: int, bad: int = -1):
        self.num, self.bad = num, bad

    def __len__(self) -> int:
        return self.num

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        if index == self.bad:
            raise ValueError(f"example {index} is damaged")
        return {"id": np.asarray(index, np.int32), "x": np.full(3, index**2, np.float32)}


def add_noise(example, rng):
    return example | {"x": example["x"] + rng.random(3).astype(np.float32)}


def ids(batches) -> list[list[int]]:
    return [batch["id"].tolist() for batch in batches]


def arrays(num: int) -> Arrays:
    return Arrays({"id": np.arange(num, dtype=np.int32), "x": np.ones((num, 2), np.float32)})


def test_each_epoch_is_a_new_permutation_and_a_seed_fixes_all():
    batches = ids(make_loader(arrays(12), 4, 3, num_epochs=3))
    assert len(batches) == 9
    epochs = np.reshape(batches, (3, 12)).tolist()
    assert all(sorted(epoch) == list(range(12)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]
    assert batches == ids(make_loader(arrays(12), 4, 3, num_epochs=3))
    assert batches != ids(make_loader(arrays(12), 4, 4, num_epochs=3))


def test_without_shuffling_the_remainder_is_dropped():
    batches = make_loader(arrays(11), 4, 0, shuffle=False, num_epochs=1)
    assert batches.steps_per_epoch == 2
    assert ids(batches) == [[0, 1, 2, 3], [4, 5, 6, 7]]
    with pytest.raises(StopIteration):
        next(batches)


def test_training_goes_on_without_end():
    batches = make_loader(arrays(4), 4, 0)
    assert all(sorted(next(batches)["id"].tolist()) == [0, 1, 2, 3] for _ in range(50))


@pytest.mark.parametrize("workers", [0, 2])
def test_resuming_gives_the_same_batches(workers):
    expected = list(make_loader(Squares(10), 3, 7, num_epochs=4, transform=add_noise))
    batches = make_loader(Squares(10), 3, 7, num_epochs=4, transform=add_noise, workers=workers)
    head = [next(batches) for _ in range(5)]
    state = json.loads(json.dumps(batches.get_state()))
    following = [next(batches) for _ in range(2)]
    batches.close()

    resumed = make_loader(Squares(10), 3, 7, num_epochs=4, transform=add_noise, workers=workers)
    resumed.set_state(state)
    tail = list(resumed)
    resumed.close()
    assert len(head + tail) == len(expected) == 12
    jax.tree.map(np.testing.assert_array_equal, head + tail, expected)
    jax.tree.map(np.testing.assert_array_equal, following, expected[5:7])


def test_an_error_in_a_worker_process_keeps_its_message():
    batches = make_loader(Squares(8, bad=5), 2, 0, shuffle=False, workers=1)
    assert ids([next(batches), next(batches)]) == [[0, 1], [2, 3]]
    with pytest.raises(ValueError, match="example 5 is damaged"):
        next(batches)
    batches.close()


def test_noise_depends_on_step_and_row_alone():
    batches = Batches(
        Squares(8), 4, 1, lambda seed, epoch: np.zeros(8, int), add_noise, None, (0, 1)
    )
    rows = np.concatenate([batches[step]["x"] for step in range(4)])
    assert len(np.unique(rows, axis=0)) == 16
    np.testing.assert_array_equal(batches[2]["x"], rows[8:12])


def test_hosts_share_the_same_global_batch():
    def part(host):
        def order(seed, epoch):
            return shuffled(16, seed, epoch)

        return Batches(Squares(16), 8, 5, order, add_noise, 2, host)

    whole, parts = part((0, 1)), [part((p, 4)) for p in range(4)]
    for step in range(4):
        joined = jax.tree.map(lambda *x: np.concatenate(x), *[p[step] for p in parts])
        jax.tree.map(np.testing.assert_array_equal, joined, whole[step])


def test_a_source_may_bring_its_own_order():
    order = lambda seed, epoch: np.asarray([3, 1, 0, 3]) + epoch
    batches = make_loader(arrays(9), 2, 0, order=order, num_epochs=2)
    assert ids(batches) == [[3, 1], [0, 3], [4, 2], [1, 4]]
    uneven = make_loader(arrays(9), 2, 0, order=lambda seed, epoch: np.arange(4 + epoch))
    with pytest.raises(ValueError, match="order of epoch 1 has 5 examples"):
        [next(uneven) for _ in range(3)]


def test_take_reads_arrays_at_once_and_agrees_with_single_reads():
    records = arrays(9)
    batch = take(records, np.asarray([4, 4, 1]))
    assert batch["id"].tolist() == [4, 4, 1]
    assert batch["x"].dtype == np.float32
    single = take(Squares(9), np.asarray([2, 3]))
    assert single["x"].shape == (2, 3) and single["id"].dtype == np.int32


def test_too_few_examples_and_uneven_hosts_are_explained(monkeypatch):
    with pytest.raises(ValueError, match="5 examples does not fill one batch of 8"):
        make_loader(arrays(5), 8, 0)
    monkeypatch.setattr(loader.jax, "process_count", lambda: 3)
    with pytest.raises(ValueError, match="batch of 8 cannot be shared by 3 hosts"):
        make_loader(arrays(16), 8, 0)


@pytest.mark.parametrize("change", [{"seed": 1}, {"batch_size": 2}, {"num": 12}])
def test_a_position_of_another_run_is_refused(change):
    settings = {"num": 8, "batch_size": 4, "seed": 0}
    state = make_loader(arrays(8), 4, 0).get_state()
    settings |= change
    other = make_loader(arrays(settings["num"]), settings["batch_size"], settings["seed"])
    with pytest.raises(ValueError, match="saved loader position"):
        other.set_state(state)


def test_prefetch_reports_the_position_of_the_consumer():
    expected = ids(make_loader(arrays(12), 2, 9, num_epochs=2))
    fetched = prefetch(make_loader(arrays(12), 2, 9, num_epochs=2), jax.device_put, size=3)
    assert fetched.get_state()["step"] == 0
    first = ids([next(fetched) for _ in range(4)])
    time.sleep(0.05)  # lets the thread run ahead
    state = fetched.get_state()
    assert state["step"] == 4

    resumed = prefetch(make_loader(arrays(12), 2, 9, num_epochs=2), jax.device_put)
    resumed.set_state(state)
    assert first + ids(resumed) == expected
    with pytest.raises(StopIteration):
        next(resumed)
    fetched.set_state(state)
    assert first + ids(fetched) == expected
    fetched.close()
    resumed.close()


def test_prefetch_goes_on_after_close_where_the_consumer_was():
    expected = ids(make_loader(arrays(12), 2, 9, num_epochs=1))
    fetched = prefetch(make_loader(arrays(12), 2, 9, num_epochs=1), dict)
    first = ids([next(fetched)])
    fetched.close()
    assert first + ids(fetched) == expected
    fetched.close()


def test_prefetch_raises_what_the_source_or_the_device_raised():
    fetched = prefetch(make_loader(Squares(8, bad=2), 2, 0, shuffle=False), jax.device_put)
    next(fetched)
    for _ in range(2):
        with pytest.raises(ValueError, match="example 2 is damaged"):
            next(fetched)

    def full(batch):
        raise RuntimeError("no memory left")

    with pytest.raises(RuntimeError, match="no memory left"):
        next(prefetch(make_loader(arrays(8), 2, 0), full))


def test_closing_or_dropping_a_prefetch_ends_its_thread():
    def alive():
        return [t for t in threading.enumerate() if t.name == "prefetch"]

    fetched = prefetch(make_loader(arrays(8), 2, 0), dict)
    next(fetched)
    assert alive()
    fetched.close()
    assert not alive()
    dropped = prefetch(make_loader(arrays(8), 2, 0), dict)
    next(dropped)
    del dropped
    gc.collect()
    assert not alive()


def test_leaving_the_program_is_silent_and_quick(tmp_path):
    script = tmp_path / "leave.py"
    script.write_text(
        textwrap.dedent("""
        from jcmr.data.loader import make_loader, prefetch
        from jcmr.data.records import Arrays
        import numpy as np

        if __name__ == "__main__":
            batches = make_loader(Arrays({"id": np.arange(8)}), 2, 0, workers=1)
            fetched = prefetch(batches, dict)
            print(next(fetched)["id"].shape)
        """)
    )
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and done.stdout == "(2,)\n" and done.stderr == "", done


@pytest.mark.parametrize("how", ["pmap", "shard_map"])
def test_resident_records_give_the_batches_that_are_sent(how):
    mesh = parallel.make_mesh()
    rng = np.random.default_rng(0)
    records = Arrays({"image": rng.integers(0, 9, (40, 3, 3), np.uint8), "id": np.arange(40)})
    sent = make_loader(records, 16, seed=3)
    rows = make_loader(resident.Rows(len(records)), 16, seed=3)
    put = resident.make_put(records, mesh, how)
    for _ in range(3):
        want, got = parallel.put_batch(next(sent), mesh, how), put(next(rows))
        jax.tree.map(np.testing.assert_array_equal, got, want)
        assert got["image"].sharding == want["image"].sharding
    assert rows.get_state() == sent.get_state()
