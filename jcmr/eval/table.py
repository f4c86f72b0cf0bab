"""Metrics as a table for the terminal."""

import re
from collections.abc import Mapping

DIRECTION = re.compile(r"[a-z]2[a-z]")


def metrics_table(values: Mapping[str, float]) -> str:
    """One line per metric, the two directions beside each other: `prefix/direction/metric`."""
    parents = {n.split("/")[-2:][0] for n in values}
    directions = sorted(parent for parent in parents if DIRECTION.fullmatch(parent))
    rows: dict[str, dict[str, float]] = {}
    rest: dict[str, float] = {}
    for name, value in values.items():
        *prefix, direction, metric = name.split("/")
        if direction in directions:
            rows.setdefault("/".join([*prefix, metric]), {})[direction] = value
        else:
            rest[name] = value
    width = max(map(len, [*rows, *rest, "metric"]))
    lines = [f"{'metric':{width}}" + "".join(f"{d:>10}" for d in directions)]
    for name, found in rows.items():
        cells = [f"{found[d]:10.4g}" if d in found else " " * 10 for d in directions]
        lines.append(f"{name:{width}}" + "".join(cells))
    lines += [f"{name:{width}}{value:10.4g}" for name, value in rest.items()]
    return "\n".join(lines)
