"""The pictures of a run on objects: what is found in other modalities, the space, each class."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import pyplot as plt

from jcmr.core.types import RetrievalSplit
from jcmr.data.rasterize import render, turned
from jcmr.eval.report import STYLE, draw_curves, frame, save, show_image
from jcmr.eval.retrieval import Results

AZIMUTH, ELEVATION = np.array([0.6]), np.array([0.5])
NUM_QUERIES, NUM_SHOWN, MOST_POINTS = 2, 4, 600
PLURAL = {"image": "images", "points": "clouds", "mesh": "meshes"}
MARKERS = {"image": "s", "points": ".", "mesh": "^"}


def show_points(axis: Any, points: np.ndarray, hit: bool | None) -> None:
    """A cloud [p, 3], nearer points darker."""
    seen = turned(points[:, None], AZIMUTH, ELEVATION)[0, :, 0]
    axis.scatter(seen[:, 0], seen[:, 1], s=2, c=-seen[:, 2], cmap="gray")
    axis.set(xlim=(-1.05, 1.05), ylim=(-1.05, 1.05), aspect="equal")
    frame(axis, hit)


def show_faces(axis: Any, faces: np.ndarray, hit: bool | None) -> None:
    """A mesh of face features [f, 15]."""
    corners = faces[:, 3:12].reshape(-1, 3, 3)
    show_image(axis, np.repeat(render(corners, AZIMUTH, ELEVATION, 96)[0][..., None], 3, -1), hit)


def show_item(axis: Any, item: Mapping[str, np.ndarray], hit: bool | None) -> None:
    """An item of any modality; the first of several views."""
    if "image" in item:
        show_image(axis, item["image"][0], hit)
    elif "points" in item:
        show_points(axis, item["points"], hit)
    else:
        show_faces(axis, item["faces"], hit)


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
    shape = len(rows) * NUM_QUERIES, 1 + others * NUM_SHOWN
    figure, axes = plt.subplots(*shape, figsize=(1.05 * shape[1], 1.15 * shape[0]), squeeze=False)
    for row, query in enumerate(rows):
        targets = [gallery for q, gallery in found if q == query]
        for number in range(NUM_QUERIES):
            line = axes[row * NUM_QUERIES + number]
            for column, gallery in enumerate(targets):
                queries, items, top, hits = found[query, gallery]
                index = (2 * (row * NUM_QUERIES + number) + 1) * len(queries) // (2 * shape[0])
                show_item(line[0], queries[index], None)
                first = 1 + column * NUM_SHOWN
                for place in range(NUM_SHOWN):
                    axis = line[first + place]
                    if place >= top.shape[1] or top[index, place] < 0:
                        axis.axis("off")
                        continue
                    show_item(axis, items[int(top[index, place])], bool(hits[index, place]))
                if number == 0:
                    line[first].set_title(f"best {PLURAL[gallery]}")
            if number == 0:
                line[0].set_title(f"{query} query")
    save(figure, path)


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
