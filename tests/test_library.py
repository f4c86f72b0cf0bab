"""jcmr.losses, jcmr.ops and jcmr.eval.metrics as a library: documented, exemplified, light."""

import doctest
import importlib
import inspect
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FILES = [*(ROOT / "jcmr/losses").glob("[!_]*.py"), *(ROOT / "jcmr/ops").glob("[!_]*.py")]
FILES += [ROOT / "jcmr/eval/metrics.py", ROOT / "jcmr/serve/programs.py"]
MODULES = sorted(".".join(path.relative_to(ROOT).with_suffix("").parts) for path in FILES)
PARTS = {"anchor_sums", "likelihood_forward", "likelihood_backward", "search_tiles", "dot"}
"""Of a function beside them, which has an example."""
HEAVY = (
    "grain", "tensorflow_datasets", "tensorflow", "orbax", "jraph", "flax", "ml_collections",
    "torch", "PIL", "matplotlib",
)  # fmt: skip
LIGHT = """
import sys
import jax, jax.numpy, optax
before = len(sys.modules)
import importlib
for name in sys.argv[1:]:
    importlib.import_module(name)
print(len(sys.modules) - before, *sorted({name.split(".")[0] for name in sys.modules}))
"""


@pytest.mark.parametrize("name", MODULES)
def test_every_public_function_has_an_example_that_holds(name):
    module = importlib.import_module(name)
    functions = [
        (n, f)
        for n, f in vars(module).items()
        if callable(f) and getattr(f, "__module__", "") == name and not n.startswith("_")
    ]
    for n, function in functions:
        assert inspect.getdoc(function), f"{name}.{n} has no docstring"
        plain = not inspect.isclass(function) and n not in PARTS
        assert not plain or ">>>" in inspect.getdoc(function), f"{name}.{n} has no example"
    found = doctest.testmod(module)
    assert found.attempted and not found.failed


def test_losses_import_nothing_heavy():
    """Counted in modules, not seconds: what jax and optax do not bring is jcmr's own."""
    names = [name for name in MODULES if name.startswith("jcmr.losses")]
    command = [sys.executable, "-c", LIGHT, *names]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    more, *packages = done.stdout.split()
    assert not set(HEAVY) & set(packages)
    ours = sum(1 for room in ("core", "ops", "losses") for _ in (ROOT / "jcmr" / room).glob("*.py"))
    assert int(more) <= ours + 1
