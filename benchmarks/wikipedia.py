"""One table on Wikipedia image-text features: our systems beside classical baselines.

python -m benchmarks.wikipedia --file=wikipedia.npz
python -m benchmarks.wikipedia --file=wikipedia.npz --cross_validate --seeds=0,1,2

2,173 training and 693 test pairs, 10 classes; each test item queries all test items of the other
modality, same class is relevant, mAP over the whole ranking. Baselines pick their settings by
cross-validation on the training pairs here; those of the neural rows are in their configs, compared
by `cross_validate` (without labels: by `pair_rate`). Test is looked at once a row and seed, at the
end. Neural rows train in this process, from the configs, whole runs in one compiled scan.
"""

import argparse
import importlib.util
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from benchmarks import record
from benchmarks.baselines import wikipedia as baselines
from jcmr import launch
from jcmr.core.types import RetrievalSplit, split_list
from jcmr.serve import runs
from jcmr.train.state import init_state, make_train_step

ROOT = Path(__file__).parents[1]


class Row(NamedTuple):
    """One line of the table: a config, and what is changed of it."""

    label: str
    config: str
    arg: str = ""
    overrides: Mapping[str, Any] = {}


ROWS = (
    Row("GCN: pairwise global loss (the paper's)", "gcn_wikipedia", "paper"),
    Row("GCN: class posteriors", "gcn_wikipedia"),
    Row("GCN without the words beside", "gcn_wikipedia", "", {"model.residual": False}),
    Row("MLP text instead of GCN", "gcn_wikipedia", "", {"model.text": "mlp"}),
    Row("GPLDAN", "gpldan_wikipedia"),
    Row("PVSE", "gpldan_wikipedia", "pvse"),
)


def load_config(row: Row, file: str) -> Any:
    """The row's config on the data in `file`."""
    path = ROOT / "configs" / f"{row.config}.py"
    spec: Any = importlib.util.spec_from_file_location(row.config, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    config = module.get_config(row.arg)
    config.data.file = file
    config.update_from_flattened_dict(dict(row.overrides))
    return config


class Runner:
    """Trains a config on any of its training pairs, compiled once for any seed and fold."""

    def __init__(self, config: Any):
        self.config, self.batch_size = config, config.train.batch_size
        self.source, self.task = runs.build(config)
        self.columns = jax.device_put(dict(self.source.train.columns))  # pyright: ignore
        self.score = jax.jit(self._score)
        self.run = jax.jit(self._run, static_argnames="num_steps")

    def _score(self, variables: Any, images: Any, texts: Any) -> Any:
        encode = self.task.encode
        return self.task.score(
            variables, encode["image"](variables, images), encode["text"](variables, texts)
        )

    def _run(self, variables: Any, key: Any, columns: Any, order: Any, num_steps: int) -> Any:
        stage = launch.plan(self.config, num_steps)[0]
        optimizer = stage.make_optimizer(variables["params"])
        step = make_train_step(self.task, optimizer, lambda batch, key, axis: batch)
        state = init_state(variables, optimizer, key)

        def body(state: Any, rows: Any) -> Any:
            return step(state, jax.tree.map(lambda x: x[rows], columns), None)

        state, logs = jax.lax.scan(body, state, order)
        return state.variables, jax.tree.map(lambda x: x[-1], logs)

    def train(self, rows: np.ndarray, seed: int) -> Any:
        """Variables after training on the pairs `rows`, and the last values of the objective."""
        per_epoch = len(rows) // self.batch_size
        num_epochs = sum(dict(stage)["num_epochs"] for stage in self.config.train.stages)
        order = [
            np.random.default_rng([seed, epoch]).permutation(rows)[: per_epoch * self.batch_size]
            for epoch in range(num_epochs)
        ]
        order = np.stack(order).reshape(-1, self.batch_size).astype(np.int32)
        first = jax.tree.map(lambda x: x[:2], self.columns)
        variables = jax.jit(self.task.init)(jax.random.key(seed), first)
        return self.run(variables, jax.random.key(seed), self.columns, order, per_epoch)

    def scores(self, variables: Any, split: RetrievalSplit) -> np.ndarray:
        """Scores of all images of a split against all its texts."""
        images, texts = (items.columns for items in split.items.values())  # pyright: ignore
        return np.asarray(self.score(variables, dict(images), dict(texts)))

    def held_out(self, variables: Any, rows: np.ndarray) -> np.ndarray:
        """Scores among some training pairs."""
        part = jax.tree.map(lambda x: x[rows], self.columns)
        return np.asarray(self.score(variables, part, part))


def test_split(source: Any) -> RetrievalSplit:
    """The test split of a source that has one pair of galleries."""
    return split_list(source.retrieval("test"))[0]


def pair_rate(scores: np.ndarray, share: float = 0.1) -> float:
    """Percent of queries whose own pair is among the first `share`, mean of both directions."""
    own = np.diag(scores)
    depth = max(1, round(share * len(scores)))
    ranks = (scores > own[:, None]).sum(1), (scores > own[None]).sum(0)
    return 50 * float(sum(np.mean(rank < depth) for rank in ranks))


def cross_validate(
    config: Any, measure: Callable[[np.ndarray, np.ndarray], float], seeds: Sequence[int]
) -> list[float]:
    """`measure(scores, rows)` of each seed on held-out fifths of the training pairs, drawn without
    labels.
    """
    runner = Runner(config)
    num = len(runner.columns["id"])
    place = np.random.default_rng(0).permutation(num)
    size, found = num // 5, []
    for fold in range(5):
        held = place[fold * size : (fold + 1) * size]
        kept = np.setdiff1d(place[: 5 * size], held)
        for seed in seeds:
            variables, _ = runner.train(kept, seed)
            found.append(measure(runner.held_out(variables, held), held))
    return found


def cross_validate_row(row: Row, file: str, seeds: Sequence[int]) -> None:
    """Prints what `cross_validate` says of a row: with labels their mAP, without the pair rate."""
    config = load_config(row, file)
    columns = runs.build(config)[0].train.columns  # pyright: ignore
    labels = columns.get("label")

    def measure(scores: np.ndarray, held: np.ndarray) -> float:
        if labels is None:
            return pair_rate(scores)
        return baselines.class_map(scores, np.asarray(labels)[held])["map"]

    found = cross_validate(config, measure, seeds)
    print(f"{row.label:45} held out {np.mean(found):.4f} ({min(found):.4f} to {max(found):.4f})")


def run_row(row: Row, file: str, seeds: Sequence[int]) -> None:
    """Trains a row on several seeds; records each, and for several their ensemble."""
    config = load_config(row, file)
    runner = Runner(config)
    labels = test_split(runner.source).relevance["class"].rows
    rows, total = np.arange(len(runner.columns["id"])), 0.0
    for seed in seeds:
        began = time.monotonic()
        variables, _ = runner.train(rows, seed)
        scores = runner.scores(variables, test_split(runner.source))
        total = total + scores / scores.std()
        seconds = time.monotonic() - began
        add(row.label, seed, baselines.class_map(scores, labels), seconds, config)
    if len(seeds) > 1:
        label = f"{row.label}: ensemble of {len(seeds)}"
        add(label, 0, baselines.class_map(np.asarray(total), labels), 0.0, config)


def without_folder(config: Any) -> Any:
    """A config that names its data file, not where it lies on this machine."""
    config = config.copy_and_resolve_references()
    config.data.file = Path(config.data.file).name
    return config


def add(label: str, seed: int, metrics: Mapping[str, float], seconds: float, settings: Any):
    """Records and prints one result."""
    result = {
        "experiment": "wikipedia",
        "row": label,
        "seed": seed,
        "seconds": round(seconds, 1),
        "metrics": dict(metrics),
        "config": settings if isinstance(settings, dict) else without_folder(settings).to_json(),
    }
    record.append("quality", result)
    print(
        f"{label:45} seed {seed}  i2t {metrics['i2t/map']:.3f}  t2i {metrics['t2i/map']:.3f}  "
        f"mean {metrics['map']:.3f}  {seconds:.0f} s",
        flush=True,
    )


def run_baselines(file: str) -> None:
    """CCA, SM, SCM, ridge and chi-squared SVM, on LDA topics and on tf-idf words."""
    with np.load(file) as arrays:
        data = {name: arrays[name] for name in arrays.files}

    def split(name: str, text: str) -> baselines.Data:
        parts = [data[f"{t}_{name}"].astype(np.float64) for t in text.split("+")]
        image = data[f"image_{name}"].astype(np.float64)
        return baselines.Data(image, np.concatenate(parts, axis=1), data[f"labels_{name}"])

    dims, regs = (5, 6, 7, 9), (1e-2, 0.1, 1.0, 10.0)
    pairs = [{"dim": d, "reg": r} for d in dims for r in regs]
    cs = [{"c": c} for c in (1e-3, 1e-2, 0.1, 1.0)]
    machines = [{"svm": s, "c": c} for s in (1.0, 4.0) for c in (1e-3, 1e-2)]
    usual = ("cosine", "correlation")
    for label, method, text, grid, similarities in (
        ("CCA, LDA (no labels)", "CCA", "lda", pairs, usual),
        ("SCM, LDA", "SCM", "lda", [{**p, "c": 1.0} for p in pairs], usual),
        ("ridge, tf-idf", "ridge", "tfidf", [{"strength": s} for s in (0.1, 1.0, 10.0)], usual),
        ("SM by correlation, tf-idf", "SM", "tfidf", cs, ("correlation",)),
        ("SM by dot, tf-idf", "SM", "tfidf", cs, ("dot",)),
        ("chi2-SVM image, SM text, by dot, tf-idf + LDA", "chi2-SVM", "tfidf+lda", machines,
         ("dot",)),
    ):  # fmt: skip
        began = time.monotonic()
        sides = split("train", text), split("test", text)
        found = baselines.evaluate(method, grid, similarities, *sides)
        add(label, 0, found["metrics"], time.monotonic() - began, found["settings"])


def main() -> None:
    """Reads the command line; runs all rows."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--file", required=True)
    parser.add_argument("--seeds", default="0,1,2,3,4")
    parser.add_argument("--rows", default="", help="labels' beginnings, comma separated; or all")
    parser.add_argument("--cross_validate", action="store_true", help="on training pairs alone")
    own = parser.parse_args()
    seeds = [int(seed) for seed in own.seeds.split(",")]
    launch.enable_compilation_cache()
    wanted = tuple(own.rows.split(",")) if own.rows else ("",)
    if own.cross_validate:
        for row in ROWS:
            if row.label.startswith(wanted):
                cross_validate_row(row, own.file, seeds)
        return
    if "baselines".startswith(wanted):
        run_baselines(own.file)
    for row in ROWS:
        if row.label.startswith(wanted):
            run_row(row, own.file, seeds)


if __name__ == "__main__":
    main()
