"""Runs on the same data side by side."""

import numpy as np
import pytest

from jcmr import compare
from jcmr.core import parallel
from jcmr.eval.metrics import bootstrap_interval
from tests.smoke_runs import make_run, one_device


@pytest.fixture(scope="module")
def workdirs(tmp_path_factory):
    """Two runs on the same scenes."""
    folder = tmp_path_factory.mktemp("runs")
    return [str(make_run(name, folder / name)) for name in ("pcme_scenes", "gpldan_scenes")]


def test_a_table_with_intervals_and_all_together(workdirs, tmp_path, capsys, monkeypatch):
    mesh = one_device()
    monkeypatch.setattr(parallel, "make_mesh", lambda: mesh)
    compare.main([*workdirs, f"--out={tmp_path / 'a.png'}"])
    said = capsys.readouterr().out
    header, *lines = said.splitlines()
    assert header.split() == [*workdirs, "all"]
    assert [line.split()[0] for line in lines[:6]] == [
        f"{d}/hit@{k}" for d in ("i2t", "t2i") for k in (1, 5, 10)
    ]
    assert "items encoded a second" in said and "pairs scored a second" in said
    assert (tmp_path / "a.png").stat().st_size > 1000


def test_runs_on_other_data_are_refused(workdirs, tmp_path, monkeypatch):
    mesh = one_device()
    monkeypatch.setattr(parallel, "make_mesh", lambda: mesh)
    member = compare.open_member(workdirs[0], mesh)
    source, _ = compare.build(member.run.config)
    other = source.retrieval("dev")._replace(name="test")
    with pytest.raises(ValueError, match=r"a and b are tested on different data \(captions of"):
        compare.check_same_data(
            member._replace(name="a"), member._replace(name="b", splits=[other])
        )
    with pytest.raises(ValueError, match="splits test and dev"):
        compare.check_same_data(member, member._replace(splits=[source.retrieval("dev")]))
    with pytest.raises(SystemExit, match="nowhere is no --workdir of a run"):
        compare.main([str(tmp_path / "nowhere")])


def test_an_interval_holds_the_mean_and_shrinks():
    rng = np.random.default_rng(0)
    small, large = (bootstrap_interval(rng.random(n) < 0.3) for n in (50, 5000))
    for mean, low, high in (small, large):
        assert low <= mean <= high
    # Binomial: 2 * 1.96 * sqrt(0.3 * 0.7 / n)
    assert large[2] - large[1] == pytest.approx(0.0254, rel=0.15)
    assert small[2] - small[1] == pytest.approx(0.254, rel=0.25)
