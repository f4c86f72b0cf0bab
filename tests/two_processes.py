"""One of two processes of a run, started by test_processes.py: <folder> <mapper>..."""

import sys
from pathlib import Path

import jax
import numpy as np
import optax

from jcmr.core import parallel
from jcmr.core.types import Task
from jcmr.data.records import Arrays
from jcmr.eval.embed import embed
from jcmr.index import exact
from jcmr.train import loop
from jcmr.train.checkpoint import Checkpoints
from jcmr.train.logging import RunLog
from tests.toy import ToyBatches, make_batch, make_toy

STEPS = 4


class HalfBatches(ToyBatches):
    """This process's half of each global batch."""

    def __next__(self):
        batch, place = make_batch(self.i), jax.process_index()
        self.i += 1
        half = {name: np.split(x, jax.process_count())[place] for name, x in batch.items()}
        return parallel.put_batch(half, self.mesh, self.how)


def train(folder: Path, how: str, batches=HalfBatches, end: int = STEPS):
    """Trains the toy in `folder` and returns its parameters."""
    mesh, task = parallel.make_mesh(), make_toy()
    stages = [loop.Stage("all", 0, end, lambda params: optax.sgd(0.1))]
    folder.mkdir(parents=True, exist_ok=True)
    checkpoints = Checkpoints(folder / "checkpoints")
    variables = task.init(jax.random.key(0), make_batch(0))
    state, position = loop.start_or_resume(variables, stages, 1, checkpoints, mesh)
    feed = batches(mesh, how)
    if position:
        feed.set_state(position)
    log = RunLog(parallel.own_folder(folder), resumed_at=int(state.step))
    intervals = loop.Intervals(2, 0, 0)
    state = loop.train(
        task, state, feed, stages, lambda batch, key, axis: batch, lambda variables: {},
        checkpoints, {"name": "toy"}, log, mesh, intervals, 16, how,
    )  # fmt: skip
    log.close()
    checkpoints.close()
    return jax.device_get(state.params)


def check_own_index() -> None:
    """What a process indexes with its own devices, it finds without waiting for the other one."""
    if jax.process_index():
        return
    rows = np.eye(6, 4, dtype=np.float32)
    encode = {"text": lambda variables, inputs: variables * inputs["text"]}
    task = Task(None, None, encode, None)  # pyright: ignore
    mesh = parallel.make_mesh(jax.local_devices())
    one, items = parallel.replicate(np.float32(2), mesh), Arrays({"text": rows})
    vectors = embed(task, one, items, "text", 4, lambda batch: batch, mesh)
    np.testing.assert_array_equal(vectors, 2 * rows)
    assert exact.make_search(vectors)(rows[:3], 1)[1].tolist() == [[0], [1], [2]]


if __name__ == "__main__":
    parallel.join_processes()
    assert jax.process_count() == 2 and jax.device_count() == 4
    check_own_index()
    for mapper in sys.argv[2:]:
        train(Path(sys.argv[1]) / mapper, mapper)
