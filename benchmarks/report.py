"""Writes BENCHMARKS.md and its pictures from results/*.jsonl: python -m benchmarks.report."""

import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks import record

OUT = Path(__file__).parents[1] / "BENCHMARKS.md"
FLICKR8K = {
    **{f"{way} R@{k}": f"test/{way}/r@{k}" for way in ("i2t", "t2i") for k in (1, 5, 10)},
    "RSUM": "test/rsum",
}
NAMES = ("faiss", "torch", "ours")
SCENES = {
    "hit@1 t2i": "test/t2i/hit@1",
    "hit@1 i2t": "test/i2t/hit@1",
    "R-P t2i": "test/t2i/r_precision",
    "R-P i2t": "test/i2t/r_precision",
    "R@1 t2i": "test/t2i/r@1",
    "R@1 i2t": "test/i2t/r@1",
}
PAIRS = [f"{a}2{b}" for a in "imp" for b in "imp"]
ACCURACIES = {
    f"accuracy {name}": f"test/views2/{name}/accuracy" for name in ("image", "points", "mesh")
}
QUALITY: dict[str, tuple[str, dict[str, str]]] = {
    "pcme_scenes": (
        "PCME on scenes: 1,000 held-out scenes, 5,000 captions, exact relevance",
        {
            "hit@1 t2i": "test/t2i/hit@1",
            "hit@1 i2t": "test/i2t/hit@1",
            "R-P t2i": "test/t2i/r_precision",
            "R-P i2t": "test/i2t/r_precision",
            "mAP@R t2i": "test/t2i/map@r",
            "R@1 t2i": "test/t2i/r@1",
            "R@1 i2t": "test/i2t/r@1",
            "vague i2t": "test/i2t/vague_top1",
            "uncertainty of captions vs matches": "test/text/uncertainty_vs_matches",
            "of images vs matches": "test/image/uncertainty_vs_matches",
            "of images vs occlusion": "test/image/uncertainty_vs_occlusion",
        },
    ),
    "center3d_shapes": (
        "Center loss on solids: 600 held-out objects of 12 classes, mAP over the full ranking, "
        "mean of nine directions",
        {
            **{f"mAP {v} views": f"test/views{v}/map" for v in (1, 2, 4)},
            "chance": "test/views2/map_chance",
            **ACCURACIES,
        },
    ),
    "center3d_modelnet10_voxels": (
        "Center loss on ModelNet10 made from voxels: the 908 test objects, mAP over the full "
        "ranking (image, points, mesh), two views",
        {
            **{pair: f"test/views2/{pair}/map" for pair in PAIRS},
            **{f"mean, {v} views": f"test/views{v}/map" for v in (1, 2, 4)},
            "chance": "test/views2/map_chance",
            **ACCURACIES,
        },
    ),
    "pcme_flickr8k": (
        "Flickr8k subset: 753 training photos, test gallery of 125 (not comparable with the "
        "published 1,000-image test)",
        FLICKR8K,
    ),
    "wikipedia": (
        "Wikipedia image-text features: 2,173 training and 693 test pairs, class mAP over the full "
        "ranking, gallery: the test items of the other modality",
        {"i2t": "i2t/map", "t2i": "t2i/map", "mean": "map", "cross-validated": "cv"},
    ),
    "gpldan_scenes": (
        "GPLDAN and PVSE on scenes: 1,000 held-out scenes, 5,000 captions, exact relevance",
        SCENES,
    ),
    "dxr_scenes": (
        "DXR on scenes, and without each of its fixes: 1,000 held-out scenes, 5,000 captions, "
        "exact relevance",
        SCENES,
    ),
    "dxr_flickr8k": ("DXR on the same Flickr8k subset", FLICKR8K),
    "imram_scenes": (
        "IMRAM on scenes: 500 held-out scenes, 2,500 captions, exact relevance",
        {
            "hit@1 t2i": "test/t2i/hit@1",
            "hit@1 i2t": "test/i2t/hit@1",
            "mAP@R t2i": "test/t2i/map@r",
            "R@1 t2i": "test/t2i/r@1",
            "R@1 i2t": "test/i2t/r@1",
        },
    ),
    "xtra_scenes": (
        "Questions about scenes that cards of facts answer: accuracy on held-out entities",
        {
            "index A": "held_out/index_a/accuracy",
            "after the swap to B": "held_out/swapped_b/accuracy",
            "A against B's truth": "held_out/stale/accuracy",
            "no retrieval": "held_out/no_retrieval/accuracy",
            "masked cards": "held_out/masked/accuracy",
            "right cards given": "held_out/oracle/accuracy",
            "retriever's hits": "held_out/hit_rate",
            "visual questions, A": "visual/index_a/accuracy",
            "visual questions, B": "visual/swapped_b/accuracy",
            "A, B, A: same bits": "swap/same_logits",
            "recompilations": "swap/recompilations",
            "swap, s": "swap/seconds",
        },
    ),
    "xtra_easyvqa": (
        "easy-VQA: the public test split, 1,000 images, 9,673 questions, no retrieval",
        {
            "accuracy": "test/accuracy",
            "yes or no": "test/yes_no",
            "colour": "test/colour",
            "shape": "test/shape",
        },
    ),
}
REFERENCES = {
    "center3d_modelnet10_voxels": {
        "features of the official release (other views and meshes)": {
            **dict(
                zip(
                    [f"test/views2/{pair}/map" for pair in PAIRS],
                    (0.8906, 0.8966, 0.9017, 0.8815, 0.9041, 0.8996, 0.8880, 0.9089, 0.9105),
                )
            ),
        }
    },
    "xtra_easyvqa": {
        "easy-VQA-keras, default (its README)": {"test/accuracy": 0.938},
        "easy-VQA-keras, larger, on twice the data": {"test/accuracy": 0.995},
    },
}
"""Rows of others: what the evaluation of the official protocol gives on what they published."""


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def spread(values: Sequence[float]) -> str:
    """Mean and standard deviation over seeds."""
    mean = statistics.fmean(values)
    digits = 1 if abs(mean) >= 10 else 3
    if len(values) == 1:
        return f"{mean:.{digits}f}"
    return f"{mean:.{digits}f} ± {statistics.stdev(values):.{digits}f}"


def provenance(records: Sequence[Mapping[str, Any]]) -> str:
    """One line: device, versions, commits and dates of a table's records."""
    machines = [r["machine"] for r in records]
    parts = [
        sorted({f"{m['device']}, {m['cores']} cores" for m in machines}),
        sorted({f"{name} {m['versions'][name]}" for m in machines for name in ("jax", "flax")}),
        ["commit " + ", ".join(sorted({m["commit"] for m in machines}))],
        sorted({f"flags {m['xla_flags']}" for m in machines if m["xla_flags"]}),
        [" to ".join(sorted({min(m["date"] for m in machines), max(m["date"] for m in machines)}))],
    ]
    return "*" + "; ".join(", ".join(part) for part in parts if part) + "*"


def quality_section(experiment: str, records: Sequence[Mapping[str, Any]]) -> str:
    """The table of one experiment: a line per row, mean and spread over seeds."""
    title, columns = QUALITY[experiment]
    newest = {(r["row"], r["seed"]): r for r in records if r["experiment"] == experiment}
    if not newest:
        return f"### {title}\n\nNot measured yet."
    rows = []
    for label in dict.fromkeys(row for row, _ in newest):
        runs = [r for (row, _), r in newest.items() if row == label]
        cells = []
        for metric in columns.values():
            values = [r["metrics"][metric] for r in runs if metric in r["metrics"]]
            cells.append(spread(values) if values else "-")
        seconds = [r["seconds"] for r in runs if r["seconds"] is not None]
        minutes = f"{statistics.fmean(seconds) / 60:.1f}" if seconds else "-"
        rows.append([label, str(len(runs)), *cells, minutes])
    for label, metrics in REFERENCES.get(experiment, {}).items():
        cells = [f"{metrics[m]:.3f}" if m in metrics else "-" for m in columns.values()]
        rows.append([label, "-", *cells, "-"])
    body = table(["system", "seeds", *columns, "minutes"], rows)
    return f"### {title}\n\n{body}\n\n{provenance(list(newest.values()))}"


SUITES = {
    "cpu": "Speed on CPU",
    "gpu": "Speed on GPU",
    "tpu": "Speed on TPU",
}
HEADER = (
    "operation",
    "size",
    "ours, ms",
    "compared with",
    "times its speed",
    "bar",
    "GFLOP",
    "MB",
    "of the floor's speed",
    "temporary MB",
    "difference",
    "more",
)


def number(value: float | None, scale: float = 1.0) -> str:
    """Three digits, or a dash."""
    return "-" if value is None or not value else f"{value / scale:.3g}"


def speed_rows(r: Mapping[str, Any]) -> list[list[str]]:
    """A row for each baseline of a record, one where there is none."""
    measured = r["measured"]
    middle, least, most = r["seconds"]["ours"] if measured else (0.0, 0.0, 0.0)
    more = [f"{value:.3g} {name}" for name, value in r["notes"].items()]
    if "examples_per_second" in r:
        more.append(f"{r['examples_per_second']:.3g} examples/s")
    ours = f"{1e3 * middle:.3g} ({1e3 * least:.3g} to {1e3 * most:.3g})"
    head = [r["operation"], r["size"], ours if measured else "not measured"]
    tail = [
        number(r["flops"], 1e9),
        number(r["bytes"], 1e6),
        f"{100 * r['of_floor']:.0f} %" if "of_floor" in r else "-",
        number(r["temp_bytes"], 1e6),
    ]
    rows = []
    for name in r["differences"] or {"": 0.0}:
        ratio = "-"
        if measured and name:
            middle, least, most = r["ratios"][name]
            ratio = f"{middle:.3g} ({least:.3g} to {most:.3g})"
        bar = f"{r['bars'][name]:g}" if name in r["bars"] else "-"
        difference = f"{r['differences'][name]:.1e}" if name else "-"
        rows.append([*head, name or "-", ratio, bar, *tail, difference, ", ".join(more) or "-"])
        head, tail, more = ["", "", ""], [""] * len(tail), []
    return rows


def newest_of(records: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The newest record of each operation and size; what was measured beats what was not."""
    newest: dict[tuple[str, str], Mapping[str, Any]] = {}
    for r in sorted(records, key=lambda r: r["measured"]):
        newest[r["operation"], r["size"]] = r
    return list(newest.values())


def speed_section(suite: str, records: Sequence[Mapping[str, Any]]) -> str:
    """The table of a suite, and its picture where something was measured."""
    title = f"## {SUITES[suite]}"
    if not records:
        return f"{title}\n\nNot measured: `python -m benchmarks --suite={suite}` on such a device."
    newest = newest_of(records)
    body = table(HEADER, [row for r in newest for row in speed_rows(r)])
    parts = [title, body, provenance(newest)]
    clocks = {r["clock"] for r in newest if r["measured"]}
    if "cpu" in clocks:
        parts.append("Times are CPU time of the process: the machine was shared.")
    if clocks and draw_ratios(suite, newest):
        parts.append(f"![Times the speed of each baseline](docs/speed_{suite}.png)")
    return "\n\n".join(parts)


def draw_ratios(suite: str, records: Sequence[Mapping[str, Any]]) -> bool:
    """Draws docs/speed_<suite>.png: ratios with their spread on a log scale, bars as ticks."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    rows = [
        (f"{r['operation']}, {r['size']} / {name}", *ratio, r["bars"].get(name))
        for r in records
        if r["measured"]
        for name, ratio in r["ratios"].items()
    ][::-1]
    if not rows:
        return False
    figure, axes = plt.subplots(figsize=(11, 1.2 + 0.28 * len(rows)))
    for place, (_, middle, least, most, bar) in enumerate(rows):
        axes.barh(place, middle, color="#4878a8" if middle >= (bar or 0) else "#c44e52", height=0.6)
        axes.plot([least, most], [place, place], color="black", linewidth=1)
        if bar:
            axes.plot([bar, bar], [place - 0.42, place + 0.42], color="black", linewidth=2.5)
    axes.set_yticks(range(len(rows)), [row[0] for row in rows], fontsize=7)
    axes.set_xscale("log")
    axes.axvline(1, color="grey", linewidth=0.8)
    axes.set_xlabel("times the speed of the baseline; thick tick: what is asked for")
    figure.tight_layout()
    figure.savefig(OUT.parent / "docs" / f"speed_{suite}.png", dpi=130)
    plt.close(figure)
    return True


def index_section(records: Sequence[Mapping[str, Any]]) -> str:
    """The newest measurement of each size of index and number of queries."""
    title = "### Exact search for the best ten, float32, against FAISS IndexFlatIP and torch"
    if not records:
        return f"{title}\n\nNot measured yet."
    newest = {(r["rows"], r["dimension"], r["queries"]): r for r in records}

    def ratio(r: Mapping[str, Any], name: str) -> str:
        low, middle, high = (r[f"{name}_cpu_ms_ratio{end}"] for end in ("_min", "", "_max"))
        return f"{middle:.2f} ({low:.2f} to {high:.2f})"

    rows = [
        [
            f"{size:,} x {dimension}",
            str(queries),
            *(f"{r[f'{name}_ms']:.0f} ({r[f'{name}_cpu_ms']:.0f})" for name in NAMES),
            ratio(r, "faiss"),
            ratio(r, "torch"),
            f"{r['gflop']:.1f} / {r['floor_gflop']:.1f}",
            f"{r['gbytes']:.2f} / {r['floor_gbytes']:.2f}",
            f"{r['temp_bytes'] / 1e6:.0f} / {r['scores_bytes'] / 1e6:.0f}",
            f"{r['load']:.0f}",
        ]
        for (size, dimension, queries), r in sorted(newest.items())
    ]
    header = ["rows", "queries", *(f"{name}, ms" for name in NAMES), "FAISS / ours", "torch / ours"]
    header += ["GFLOP / floor", "GB / floor", "temporary MB / all scores", "load"]
    note = (
        "Milliseconds by the wall clock and, in brackets, of processor time, which the ratios are "
        "of: other work shared the cores (load)."
    )
    return f"{title}\n\n{note}\n\n{table(header, rows)}\n\n{provenance(list(newest.values()))}"


def scorer_section(records: Sequence[Mapping[str, Any]]) -> str:
    """The newest measurement of the scorer."""
    title = "### The scorer"
    if not records:
        return f"{title}\n\nNot measured yet: `python -m benchmarks.scorer`."
    r = records[-1]
    rows = [
        [
            f"images encoded a second, {r['batch_size']} at a time",
            f"{r['images_per_second']:,.0f}",
            f"{r['bare_images_per_second']:,.0f} by the bare jitted model; ratio {r['ratio']:.3f} "
            f"({r['ratio_min']:.3f} to {r['ratio_max']:.3f}), bar {r['bar']}",
        ],
        [
            f"one query in {r['items']:,} x {r['dim']}, p50, ms",
            f"{r['ours_p50_ms']:.1f}",
            f"{r['faiss_p50_ms']:.1f} by FAISS IndexFlatIP",
        ],
        ["p99, ms", f"{r['ours_p99_ms']:.1f}", f"{r['faiss_p99_ms']:.1f}"],
        [f"recompilations in {r['calls']:,} calls of mixed sizes", f"{r['recompilations']}", "-"],
    ]
    return f"{title}\n\n{table(['what', 'ours', 'beside'], rows)}\n\n{provenance([r])}"


def main() -> None:
    """Writes the page."""
    quality = record.read("quality")
    sections = [quality_section(experiment, quality) for experiment in QUALITY]
    page = [
        "# Benchmarks",
        "Written by `python -m benchmarks.report` from `benchmarks/results/*.jsonl`; nothing here "
        "is typed by hand. ± is the standard deviation over seeds. In the tables of speed, times "
        "are medians (least to most) of rounds in turns with what is compared; a call of less than "
        "0.5 s is timed right after one of its own, a short one several times; GFLOP counts "
        "products, MB what must be read and written; the floor is what these take at the speed "
        "that the same device reaches for a large product and a large copy.",
        "## Retrieval quality",
        *sections,
        "## Search",
        index_section(record.read("index")),
        scorer_section(record.read("scorer")),
        *(speed_section(suite, record.read(suite)) for suite in SUITES),
    ]
    OUT.write_text("\n\n".join(page) + "\n")
    print(f"wrote {OUT}")


if __name__ == "__main__":
    main()
