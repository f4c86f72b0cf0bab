"""Writes BENCHMARKS.md from results/*.jsonl alone: python -m benchmarks.report."""

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
            **{
                f"accuracy {name}": f"test/views2/{name}/accuracy"
                for name in ("image", "points", "mesh")
            },
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
        {
            "hit@1 t2i": "test/t2i/hit@1",
            "hit@1 i2t": "test/i2t/hit@1",
            "R-P t2i": "test/t2i/r_precision",
            "R-P i2t": "test/i2t/r_precision",
            "R@1 t2i": "test/t2i/r@1",
            "R@1 i2t": "test/i2t/r@1",
        },
    ),
    "dxr_scenes": (
        "DXR on scenes, and without each of its fixes: 1,000 held-out scenes, 5,000 captions, "
        "exact relevance",
        {
            "hit@1 t2i": "test/t2i/hit@1",
            "hit@1 i2t": "test/i2t/hit@1",
            "R-P t2i": "test/t2i/r_precision",
            "R-P i2t": "test/i2t/r_precision",
            "R@1 t2i": "test/t2i/r@1",
            "R@1 i2t": "test/i2t/r@1",
        },
    ),
    "dxr_flickr8k": ("DXR on the same Flickr8k subset", FLICKR8K),
    "imram_scenes": (
        "IMRAM on scenes: 1,000 held-out scenes, 5,000 captions, exact relevance",
        {
            "hit@1 t2i": "test/t2i/hit@1",
            "hit@1 i2t": "test/i2t/hit@1",
            "mAP@R t2i": "test/t2i/map@r",
            "R@1 t2i": "test/t2i/r@1",
            "R@1 i2t": "test/i2t/r@1",
        },
    ),
}


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
        minutes = statistics.fmean(r["seconds"] for r in runs) / 60
        rows.append([label, str(len(runs)), *cells, f"{minutes:.1f}"])
    body = table(["system", "seeds", *columns, "minutes"], rows)
    return f"### {title}\n\n{body}\n\n{provenance(list(newest.values()))}"


def graph_section(records: Sequence[Mapping[str, Any]]) -> str:
    """Time and bytes of propagation, the newest record of each case and layout."""
    title = (
        "### Chebyshev propagation over a vocabulary, value and gradient; the graph pattern loss"
    )
    newest = {(r["case"], r["layout"]): r for r in records}
    if not newest:
        return f"{title}\n\nNot measured yet."
    rows = [
        [
            case,
            layout,
            f"{r['median_ms']:.1f}" if "median_ms" in r else "-",
            f"{r['graph_bytes'] / 1e6:.1f}" if "graph_bytes" in r else "-",
            f"{r['temp_bytes'] / 1e6:.1f}",
        ]
        for (case, layout), r in newest.items()
    ]
    body = table(["case", "layout", "median ms", "graph MB", "temporaries MB"], rows)
    return f"{title}\n\n{body}\n\n{provenance(list(newest.values()))}"


def scoring_section(records: Sequence[Mapping[str, Any]]) -> str:
    """The newest measurement of scoring with each number of steps."""
    title = "### Full IMRAM against a caption loop in torch: 14 words, 36 regions, d = 1024"
    if not records:
        return f"{title}\n\nNot measured yet."
    newest = {r["steps"]: r for r in records}
    rows = [
        [
            str(steps),
            f"{r['baseline_ms_per_pair']:.2f}",
            f"{r['ms_per_pair']:.3f}",
            f"{r['ratio']:.1f} ({r['ratio_min']:.1f} to {r['ratio_max']:.1f})",
            f"{r['baseline_mflop_per_pair']:.1f}",
            f"{r['mflop_per_pair']:.2f}",
            f"{r['xla_bytes_per_pair'] / 1e6:.2f}",
            f"{r['temp_bytes'] / 1e6:.0f}",
            f"{r['prepare_ms_per_item']:.2f}",
        ]
        for steps, r in sorted(newest.items())
    ]
    header = ["K", "loop, ms a pair", "ours, ms a pair", "ratio", "loop, MFLOP", "ours, MFLOP"]
    header += ["ours, MB a pair", "temporary MB", "once per item, ms"]
    return f"{title}\n\n{table(header, rows)}\n\n{provenance(list(newest.values()))}"


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


def main() -> None:
    """Writes the page."""
    quality = record.read("quality")
    sections = [quality_section(experiment, quality) for experiment in QUALITY]
    page = [
        "# Benchmarks",
        "Written by `python -m benchmarks.report` from `benchmarks/results/*.jsonl`; nothing here "
        "is typed by hand. ± is the standard deviation over seeds.",
        "## Retrieval quality",
        *sections,
        "## Graphs",
        graph_section(record.read("graph")),
        "## Scoring",
        scoring_section(record.read("imram_scoring")),
        "## Search",
        index_section(record.read("index")),
    ]
    OUT.write_text("\n\n".join(page) + "\n")
    print(f"wrote {OUT}")


if __name__ == "__main__":
    main()
