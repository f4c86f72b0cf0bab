"""What is said of a long loop."""

from jcmr.core import progress


def test_rate_and_time_left_are_said_and_padding_is_not_counted(monkeypatch):
    monkeypatch.setattr(progress, "INTERVAL", 0.0)
    said = []
    told = progress.Progress("rows", 10, said.append)
    told(4)
    told.step(8)
    assert said[0].startswith("rows: 4 of 10, ") and said[0].endswith("s left")
    assert said[1].startswith("rows: 10 of 10, ") and said[1].endswith(" 0s left")


def test_a_short_loop_says_nothing():
    said = []
    told = progress.Progress("rows", 10, said.append)
    told(4)
    told(10)
    assert not said
