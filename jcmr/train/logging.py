"""Where the numbers of a run go: metrics.jsonl (the source of truth), TensorBoard, the terminal."""

import json
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jcmr.core.clock import clock


def write_json(path: Path, content: object) -> None:
    """Writes `content` as JSON, atomically: a reader sees the old file or the new one."""
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n")
    temporary.replace(path)


def read_records(path: Path) -> list[dict]:
    """The records of a metrics.jsonl; a last line cut off by a crash is left out."""
    if not path.exists():
        return []
    records = []
    for line in path.read_text().splitlines():
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return records


def open_board(folder: Path, first_step: int) -> Any:
    """A TensorBoard writer whose earlier records from `first_step` on are hidden.

    tensorboardX imports PyTorch where that is installed, for a type hint: it is told that there is
    none, as scalars need none and a run would start more than a second later.
    """
    hidden = "torch" not in sys.modules
    if hidden:
        sys.modules["torch"] = None  # pyright: ignore[reportArgumentType]
    try:
        from tensorboardX import SummaryWriter
    finally:
        if hidden:
            del sys.modules["torch"]
    return SummaryWriter(str(folder), purge_step=first_step)


class RunLog:
    """Appends records {step, split, name: value, ...} to a run's metrics.jsonl and TensorBoard."""

    def __init__(self, workdir: Path, resumed_at: int = 0):
        """Opens the log; records after step `resumed_at` belong to work that was lost, and go."""
        self.path = workdir / "metrics.jsonl"
        kept = [r for r in read_records(self.path) if r["step"] <= resumed_at]
        temporary = self.path.with_name(".metrics.jsonl.tmp")
        temporary.write_text("".join(json.dumps(r) + "\n" for r in kept))
        temporary.replace(self.path)
        self._file = self.path.open("a")
        self._board = open_board(workdir / "tensorboard", resumed_at + 1)

    def write(self, step: int, split: str, values: Mapping[str, float]) -> None:
        """Adds one record."""
        values = {name: float(value) for name, value in values.items()}
        self._file.write(json.dumps({"step": step, "split": split, **values}) + "\n")
        self._file.flush()
        for name, value in values.items():
            tag = name if name.startswith(f"{split}/") else f"{split}/{name}"
            self._board.add_scalar(tag.replace("@", "_at_"), value, step)

    def close(self) -> None:
        """Flushes and closes both."""
        self._file.close()
        self._board.close()


class Progress:
    """Rate and remaining time of a run, measured since the first call of `line`."""

    def __init__(self, last_step: int, batch_size: int):
        """Counts towards `last_step`, with `batch_size` examples a step."""
        self._last, self._batch = last_step, batch_size
        self._mark: tuple[int, float] | None = None
        self.rate = 0.0

    def start(self, step: int) -> None:
        """(Re)starts the clock at `step`, leaving compilation or evaluation out of the rate."""
        self._mark = (step, time.monotonic())

    def line(self, step: int, values: Mapping[str, float]) -> str:
        """One line: step, loss, examples/s, time left."""
        begin, since = self._mark or (step, time.monotonic())
        elapsed = time.monotonic() - since
        if step > begin:
            self.rate = (step - begin) * self._batch / elapsed
        left = clock((self._last - step) * self._batch / self.rate) if self.rate else "?"
        terms = "  ".join(f"{name} {value:.4g}" for name, value in values.items())
        return f"step {step}/{self._last}  {terms}  {self.rate:.0f} examples/s  {left} left"
