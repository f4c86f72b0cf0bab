"""The pictures of a run on objects: what is found in other modalities, the space, each class."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import pyplot as plt

from jcmr.core.types import RetrievalSplit
from jcmr.data.rasterize import render, turned
from jcmr.eval.report import STYLE, draw_curves, save
from jcmr.eval.report_cells import Cells
from jcmr.eval.retrieval import Results

AZIMUTH, ELEVATION = np.array([0.6]), np.array([0.5])
NUM_QUERIES, NUM_SHOWN, MOST_POINTS = 2, 4, 600
PLURAL = {"image": "images", "points": "clouds", "mesh": "meshes"}
MARKERS = {"image": "s", "points": ".", "mesh": "^"}


def show(cells: Cells, row: int, column: int, item: Mapping[str, np.ndarray], hit: bool | None):
    """An item of any modality in a cell: the first of several views; nearer points are darker."""
    if "image" in item:
        cells.image(row, column, item["image"][0], hit)
    elif "points" in item:
        seen = turned(item["points"][:, None], AZIMUTH, ELEVATION)[0, :, 0]
        cells.points(row, column, seen[:, :2], hit, s=2, c=-seen[:, 2], cmap="gray")
    else:
        corners = item["faces"][:, 3:12].reshape(-1, 3, 3)
        shades = render(corners, AZIMUTH, ELEVATION, 96)[0]
        cells.image(row, column, np.repeat(shades[..., None], 3, -1), hit)


def directions_of(splits: Sequence[RetrievalSplit], results: Sequence[Results]):
    """(query modality, gallery modality) -> (queries, gallery, top [n, k], hits [n, k])."""
    found = {}
    for split, result in zip(splits, results):
        names = [*split.items]
        if len(names) == 2:
            for query, gallery in (names, names[::-1]):
                key = f"{query[0]}2{gallery[0]}"
                items = split.items[query], split.items[gallery]
                found[query, gallery] = (*items, result.top[key], result.hits[key])
    return found


def draw_retrievals(
    splits: Sequence[RetrievalSplit], results: Sequence[Results], path: Path
) -> None:
    """For queries of each modality, the best of the other modalities, best first."""
    found = directions_of(splits, results)
    rows = list(dict.fromkeys(query for query, _ in found))
    others = max(sum(query == row for query, _ in found) for row in rows)
    num_rows = len(rows) * NUM_QUERIES
    cells = Cells(num_rows, 1 + others * NUM_SHOWN, size=1.05)
    for row in range(num_rows):
        query, number = rows[row // NUM_QUERIES], row % NUM_QUERIES
        if number == 0:
            cells.title(row, 0, f"{query} query")
        for place, gallery in enumerate(gallery for q, gallery in found if q == query):
            queries, items, top, hits = found[query, gallery]
            index = (2 * row + 1) * len(queries) // (2 * num_rows)
            first = 1 + place * NUM_SHOWN
            if place == 0:
                show(cells, row, 0, queries[index], None)
            if number == 0:
                cells.title(row, first, f"best {PLURAL[gallery]}")
            for best, (item, hit) in enumerate(zip(top[index, :NUM_SHOWN], hits[index])):
                if item >= 0:
                    show(cells, row, first + best, items[int(item)], bool(hit))
    cells.save(path)


def draw_space(splits: Sequence[RetrievalSplit], results: Sequence[Results], path: Path) -> None:
    """The two main directions of all features, coloured by class and shaped by modality."""
    features, labels = {}, {}
    for split, result in zip(splits, results):
        relation = split.relevance["class"]
        for name, embedding in result.embedding.items():
            features[name] = np.asarray(embedding.feature)[:MOST_POINTS]
            labels[name] = np.asarray(relation.rows)[:MOST_POINTS]
    every = np.concatenate([*features.values()])
    center = every.mean(axis=0)
    _, _, axes_of = np.linalg.svd(every - center, full_matrices=False)
    names = splits[0].extras["class_names"]
    colours = plt.get_cmap("tab20" if len(names) > 10 else "tab10")
    figure, axis = plt.subplots(figsize=(7.5, 5.5))
    for name, x in features.items():
        flat = (x - center) @ axes_of[:2].T
        colour = [colours(int(label) % colours.N) for label in labels[name]]
        axis.scatter(flat[:, 0], flat[:, 1], s=14, c=colour, marker=MARKERS[name], linewidths=0)
        axis.scatter([], [], c="grey", marker=MARKERS[name], label=name)
    for label, name in enumerate(names[:20]):
        axis.scatter([], [], color=colours(label % colours.N), marker="o", label=name)
    axis.set(title="features, two main directions", xticks=[], yticks=[])
    axis.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize=7)
    save(figure, path)


def class_table(splits: Sequence[RetrievalSplit], results: Sequence[Results]) -> str:
    """MAP of the queries of each class, a column a direction."""
    names = splits[0].extras["class_names"]
    columns = {d: by_class for r in results for d, by_class in r.map_by_class.items()}
    width = max(map(len, [*names, "class"]))
    lines = [f"{'class':{width}}" + "".join(f"{direction:>8}" for direction in columns)]
    for label, name in enumerate(names):
        values = [by_class.get(label, np.nan) for by_class in columns.values()]
        lines.append(f"{name:{width}}" + "".join(f"{value:8.3f}" for value in values))
    return "\n".join(lines) + "\n"


def draw(
    folder: Path,
    records: Sequence[Mapping[str, Any]],
    splits: Sequence[RetrievalSplit],
    results: Sequence[Results],
) -> None:
    """All pictures and `by_class.txt` of the splits with the most views, in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    last = splits[-1].name
    chosen = [i for i, split in enumerate(splits) if split.name == last]
    splits, results = [splits[i] for i in chosen], [results[i] for i in chosen]
    if any(result.map_by_class for result in results):
        (folder / "by_class.txt").write_text(class_table(splits, results))

    def wanted(name: str) -> bool:
        return name.endswith("accuracy") or (name.endswith("/map") and name.count("/") == 2)

    with plt.rc_context(STYLE):
        draw_curves(records, folder / "curves.png", wanted)
        if any(len(split.items) == 2 for split in splits):
            draw_retrievals(splits, results, folder / "retrievals.png")
        draw_space(splits, results, folder / "space.png")
