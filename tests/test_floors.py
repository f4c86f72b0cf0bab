"""The import rules of the house, read from the source with ast."""

import ast
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1] / "jcmr"
FLOORS = [
    {"core"},
    {"ops"},
    {"losses"},
    {"models", "data"},
    {"eval", "train", "index", "convert"},
    {"serve"},
    {"launch", "prepare", "compare"},
]
FLOOR = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}
# Each shaky dependency may be imported by these files alone.
ADAPTERS = {
    "jraph": {"ops/graph.py"},
    "orbax": {"train/checkpoint.py"},
    "tensorflow_datasets": {"data/tfds_builder.py"},
    "grain": {"data/loader.py"},
    "tensorboardX": {"train/logging.py"},
    "tokenizers": {"data/wordpiece.py"},
}
LIGHT = {"jax", "numpy", "jcmr", "flax", "optax", *sys.stdlib_module_names}


def imports(path: Path) -> list[str]:
    """Every module that `path` imports, anywhere in the file."""
    names = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names += [f"{node.module}.{alias.name}" for alias in node.names]
    return names


FILES = sorted(ROOT.rglob("*.py"))


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_only_from_floors_below(path: Path):
    parts = path.relative_to(ROOT).with_suffix("").parts
    if parts == ("__init__",):
        return
    room = parts[0]
    floor = FLOOR["launch"] if parts[-1] == "__main__" else FLOOR[room]  # commands use the house
    for name in imports(path):
        pieces = name.split(".")
        if pieces[0] == "jcmr" and len(pieces) > 1 and pieces[1] in FLOOR and pieces[1] != room:
            assert FLOOR[pieces[1]] < floor, f"{path.name} ({room}) imports {name}"
        where = str(path.relative_to(ROOT))
        if pieces[0] in ADAPTERS:
            assert where in ADAPTERS[pieces[0]], f"{where} imports {pieces[0]}"
        if room in ("ops", "losses") and where != "ops/graph.py":
            assert pieces[0] in LIGHT, f"{where} imports {pieces[0]}: math has no heavy imports"
