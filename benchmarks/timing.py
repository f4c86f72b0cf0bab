"""How everything is measured: results compared first, then both sides timed in turns.

A benchmark file yields `Case`s; `measure` makes a record of each. Floors are what this device would
need for the products and the bytes alone, at the speeds that it reaches here for a large matrix
product and a large copy.
"""

import dataclasses
import functools
import importlib
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from jcmr.core.work import bytes_of, count_work, product_peak

Scale = Literal["dry", "cpu", "gpu"]
"""Sizes: "dry" runs in no time and is not timed, "cpu" and "gpu" (also TPU) are."""


@dataclasses.dataclass
class Case:
    """One operation at one size, ours and what it is compared with, on the same inputs."""

    operation: str
    size: str
    ours: Callable[[], Any]
    """Returns arrays; they are waited for."""
    baselines: Mapping[str, Callable[[], Any]] = dataclasses.field(default_factory=dict)
    """Name -> the same computation by other means."""
    bars: Mapping[str, float] = dataclasses.field(default_factory=dict)
    """Name of a baseline -> how many times its speed is asked for."""
    shares: Mapping[str, float] = dataclasses.field(default_factory=dict)
    """Name of a baseline -> the share of the work that a call of it does, where all of it would
    take too long and its time is proportional: it is divided by that. The name says so."""
    flops: float = 0.0
    """Of products, see `core.work`."""
    bytes: float = 0.0
    """That must be read and written at least: inputs and outputs."""
    temp_bytes: int | None = None
    """XLA's temporaries at their peak."""
    compare: Callable[[Any, Any], float] | None = None
    """(ours, a baseline's) -> difference; `largest_difference` when None."""
    tolerance: float = 1e-4
    clock: str = ""
    """One of `CLOCKS` where the suite's own would see nothing, as of other processes."""
    examples: int = 0
    """A call's, where a rate says more than a time."""
    dtype: str = "float32"
    """Of the products that the floor assumes."""
    notes: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """Further numbers by name, for the table."""


def jitted(function: Callable[..., Any], *arguments: Any, **static: Any) -> dict[str, Any]:
    """Fields of a `Case` from a function of arrays: ours, flops, bytes, temp_bytes.

    It is compiled here, ahead of time; arguments are put on the device once.
    """
    placed = jax.device_put(arguments)
    bound = functools.partial(function, **static)
    compiled = jax.jit(bound).lower(*placed).compile()
    memory: Any = compiled.memory_analysis()
    made = jax.eval_shape(bound, *placed)
    return {
        "ours": lambda: compiled(*placed),
        "flops": count_work(bound, *placed).flops,
        "bytes": bytes_of(placed) + bytes_of(made),
        "temp_bytes": memory.temp_size_in_bytes,
    }


def baseline(name: str) -> Any:
    """A module of `benchmarks.baselines`, or None with a line where what it needs is absent."""
    try:
        return importlib.import_module(f"benchmarks.baselines.{name}")
    except ModuleNotFoundError as error:
        print(f"  baselines of {name} are skipped: there is no {error.name}", flush=True)
        return None


def wait(result: Any) -> Any:
    """The result, when it is there."""
    jax.block_until_ready(result)
    if any(getattr(x, "is_cuda", False) for x in jax.tree.leaves(result)):
        import torch

        torch.cuda.synchronize()
    return result


CLOCKS: Mapping[str, Callable[[], float]] = {
    "wall": time.perf_counter,
    "cpu": time.process_time,
}
"""Of all threads of this process, "cpu" does not see who else uses the machine. On one core it is
what "wall" would say on a quiet one; on several it hides how well they are used."""


SHORT, LONG = 0.1, 0.5
"""Seconds: calls of less than LONG are measured after one of their own, as many as fit SHORT."""


def seconds(run: Callable[[], Any], clock: str = "wall") -> float:
    """Of one call."""
    now = CLOCKS[clock]
    began = now()
    wait(run())
    return now() - began


def settled_seconds(run: Callable[[], Any], clock: str = "wall") -> float:
    """Of one call, or where that is short the median of the calls after it.

    A short call takes up to half as long again after another contender: as that left the caches
    and the threads. Some more pass until the memory that it frees is kept for the next one.
    """
    first = seconds(run, clock)
    if first > LONG:
        return first
    further = min(max(int(SHORT / first), 1), 20)
    return statistics.median(seconds(run, clock) for _ in range(further))


def array(x: Any) -> np.ndarray:
    """Of jax, torch or numpy, in float64 where it holds floats."""
    x = np.asarray(x.detach().cpu() if hasattr(x, "detach") else x)
    return x.astype(np.float64) if x.dtype.kind == "f" else x


def largest_difference(ours: Any, theirs: Any) -> float:
    """Over all leaves, each relative to its largest value; infinite where one is no number."""

    def one(a: Any, b: Any) -> float:
        a, b = array(a), array(b)
        if a.shape != b.shape:
            raise ValueError(f"Ours has the shape {a.shape}, the baseline {b.shape}.")
        worst = np.max(np.abs(a - b), initial=0.0) / max(np.max(np.abs(b), initial=0.0), 1e-30)
        return float(worst) if np.isfinite(worst) else np.inf

    pairs = zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True)
    return max((one(a, b) for a, b in pairs), default=0.0)


@functools.cache
def copy_peak(clock: str) -> float:
    """byte/s that one device reaches here in a large copy, the best of some."""
    x = jnp.ones(1 << (24 if jax.default_backend() == "cpu" else 28), jnp.float32)
    copy = jax.jit(lambda x: x + 1)
    wait(copy(x))
    return 2 * x.nbytes / min(seconds(lambda: copy(x), clock) for _ in range(5))


def floor_seconds(case: Case, clock: str) -> float:
    """What the products or the bytes take at least, whichever is longer."""
    products = case.flops / product_peak(case.dtype, CLOCKS[clock])
    return max(products, case.bytes / copy_peak(clock))


def spread(values: Sequence[float]) -> list[float]:
    """[median, least, most]."""
    return [statistics.median(values), min(values), max(values)]


def measure(
    case: Case, rounds: int, timed: bool = True, clock: str = "wall", budget: float = 30.0
) -> dict[str, Any]:
    """One record of a case: everything that is equal first, then interleaved rounds.

    Args:
      case: what to measure.
      rounds: of every contender in turn; fewer, but two at least, when they take longer than
        `budget` seconds.
      timed: False stops after the comparison.
      clock: one of `CLOCKS`.
      budget: seconds.

    Raises:
      ValueError: ours and a baseline do not compute the same.
    """
    compare, clock = case.compare or largest_difference, case.clock or clock
    expected = wait(case.ours())
    differences, calls = {}, {"ours": case.ours, **case.baselines}
    began = time.perf_counter()
    for name, run in case.baselines.items():
        differences[name] = compare(expected, wait(run()))
        if not differences[name] <= case.tolerance:
            raise ValueError(
                f"{case.operation} ({case.size}): ours and {name} differ by "
                f"{differences[name]:.3g}, more than {case.tolerance:g}: nothing to compare."
            )
    record: dict[str, Any] = {
        "operation": case.operation,
        "size": case.size,
        "measured": timed,
        "flops": case.flops,
        "bytes": case.bytes,
        "temp_bytes": case.temp_bytes,
        "differences": differences,
        "bars": dict(case.bars),
        "shares": dict(case.shares),
        "notes": dict(case.notes),
    }
    if not timed:
        return record
    times: dict[str, list[float]] = {name: [] for name in calls}
    for done in range(rounds):
        if done >= 2 and time.perf_counter() - began > budget:
            break
        for name, run in calls.items():
            times[name].append(settled_seconds(run, clock) / case.shares.get(name, 1.0))
    middle = statistics.median(times["ours"])
    record["seconds"] = {name: spread(values) for name, values in times.items()}
    record |= {"rounds": len(times["ours"]), "clock": clock}
    record["ratios"] = {
        name: spread([theirs / ours for theirs, ours in zip(times[name], times["ours"])])
        for name in case.baselines
    }
    if case.flops or case.bytes:
        record["floor_seconds"] = floor_seconds(case, clock)
        record["of_floor"] = record["floor_seconds"] / middle
    if case.examples:
        record["examples_per_second"] = case.examples / middle
    return record


def line(record: Mapping[str, Any]) -> str:
    """A record for the terminal."""
    head = f"{record['operation']}, {record['size']}"
    if not record["measured"]:
        found = record["differences"].values()
        agrees = f"agrees to {max(found):.1e}, " if found else ""
        return f"{head}: {agrees}not measured"
    parts = [f"{1e3 * record['seconds']['ours'][0]:.2f} ms"]
    for name, (middle, least, most) in record["ratios"].items():
        bar = f", bar {record['bars'][name]:g}x" if name in record["bars"] else ""
        parts.append(f"{middle:.2f}x {name} ({least:.2f} to {most:.2f}{bar})")
    if "of_floor" in record:
        parts.append(f"{100 * record['of_floor']:.0f} % of the floor's speed")
    if record["temp_bytes"] is not None:
        parts.append(f"temporaries {record['temp_bytes'] / 1e6:.1f} MB")
    return f"{head}: " + "; ".join(parts)
