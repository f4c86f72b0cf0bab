"""Eight host devices and exact products in every test; goldens found by file name prefix."""

import atexit
import gc
import os
import shutil
import tempfile
from importlib.metadata import version
from pathlib import Path

# Tests compile much and compute little. Processes that a test starts inherit all of this.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
# XLA's older way to write loops for CPUs takes two fifths of the time. A flag that an XLA does not
# know ends its process, so only those that were tried are given it.
if version("jaxlib").startswith("0.10.") and "emitters" not in os.environ.get("XLA_FLAGS", ""):
    flags = os.environ.get("XLA_FLAGS", "")
    os.environ["XLA_FLAGS"] = f"{flags} --xla_cpu_use_fusion_emitters=false"
# No program is compiled twice by one `make test`: its workers and processes share this folder.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="jcmr-tests-xla-")
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.03"
    atexit.register(shutil.rmtree, os.environ["JAX_COMPILATION_CACHE_DIR"], ignore_errors=True)

import jax
import numpy as np
import pytest

from jcmr.core import parallel

# Tracing makes many objects and little garbage: looking for it took 8 %
# of the time of two files, and now 3 %.
gc.set_threshold(50_000, 20, 100)

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_default_matmul_precision", "highest")

GOLDEN_DIR = Path(os.environ.get("JCMR_GOLDEN_DIR", Path(__file__).parent / "golden"))


@pytest.fixture
def optimized():
    """Programs as users get them, for tests that count their memory or work, or stand on the edge
    of a maximum as some goldens do.
    """
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    quickly = os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] == "1"
    jax.config.update("jax_disable_most_optimizations", quickly)


@pytest.fixture
def one_device(monkeypatch: pytest.MonkeyPatch):
    """Whole runs on one device, which compile fastest; others test that devices do not matter."""
    mesh = parallel.make_mesh(jax.devices()[:1])
    monkeypatch.setattr(parallel, "make_mesh", lambda: mesh)


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory):
    """name of a config -> (folder of its run, scorer), made when first asked for."""
    import jcmr
    from tests.smoke_runs import SMALL, make_run

    kept = {}

    def get(name: str = "pcme_scenes"):
        if name not in kept:
            workdir = make_run(name, tmp_path_factory.mktemp(name))
            devices = jax.devices()[:1]
            kept[name] = workdir, jcmr.Scorer.load(workdir, devices=devices, **SMALL)
        return kept[name]

    return get


@pytest.fixture(autouse=True)
def goldens_as_users_run_them(request: pytest.FixtureRequest):
    """Optimizes in the golden tests, but not in float64, which has digits to spare and no users."""
    callspec = getattr(request.node, "callspec", None)
    bits = callspec.params.get("bits") if callspec else None
    wide = bits == 64 or request.node.get_closest_marker("float64")
    if request.path.name.startswith("test_golden") and not wide:
        request.getfixturevalue("optimized")


def golden_cases(system: str, prefix: str) -> list[Path]:
    """The golden files `<system>/<prefix>*.npz`, sorted by name."""
    return sorted((GOLDEN_DIR / system).glob(f"{prefix}*.npz"))


def load_golden(path: Path) -> dict[str, np.ndarray]:
    """All arrays of a golden file."""
    with np.load(path, allow_pickle=False) as file:
        return {name: file[name] for name in file.files}


def pytest_generate_tests(metafunc: pytest.Metafunc):
    """Fills the argument `golden` from the marker `golden_prefix(system, prefix, ...)`."""
    marker = metafunc.definition.get_closest_marker("golden")
    if marker and "golden" in metafunc.fixturenames:
        system, *prefixes = marker.args
        cases = [path for prefix in prefixes for path in golden_cases(system, prefix)]
        metafunc.parametrize("golden", cases, ids=lambda path: path.stem)


def pytest_configure(config: pytest.Config):
    """Declares the markers."""
    config.addinivalue_line("markers", "golden(system, *prefixes): run on each golden file")
    config.addinivalue_line("markers", "float64: compares in float64 alone, not optimized")
