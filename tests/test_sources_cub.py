"""CUB-200-2011 from official files to a trained system."""

from pathlib import Path

import jax
import numpy as np
import pytest

from configs.pcme_cub import get_config
from jcmr import launch, prepare
from jcmr.core import parallel
from jcmr.data import image
from jcmr.data.loader import make_loader
from jcmr.data.sources import cub
from jcmr.eval import retrieval
from jcmr.serve import runs
from jcmr.train.state import init_state, make_train_step
from tests.miniatures import cub_command, table_task, write_cub


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """The prepared miniature: four training classes of 3, 3, 1 and 4 images, ten captions each."""
    root = tmp_path_factory.mktemp("cub")
    prepare.main(cub_command(write_cub(root / "raw"), root / "cub"))
    return root / "cub"


def open_cub(folder: Path, **options):
    return cub.make({"dir": str(folder), "image_size": 24, "min_count": 1} | options)


LABELS = np.repeat([1, 2, 3, 4], [30, 30, 10, 40])


def test_a_batch_has_one_example_of_each_class(data):
    source = open_cub(data)
    assert len(source.train) == 110
    loader = make_loader(source.train, 4, 0, order=source.order)
    assert loader.steps_per_epoch == 27
    image_labels = np.repeat([1, 2, 3, 4], [3, 3, 1, 4])
    for _ in range(30):  # into the second epoch
        batch = next(loader)
        assert sorted(image_labels[batch["id"]]) == [1, 2, 3, 4]
        assert batch["image"].shape == (4, 24, 24, 3) and "aspect" not in batch


def test_an_epoch_is_fair_and_depends_on_seed_and_epoch(data):
    order = open_cub(data).order
    first = order(0, 0)
    np.testing.assert_array_equal(first, order(0, 0))
    assert (first != order(0, 1)).any() and (first != order(1, 0)).any()
    times = np.bincount(first, minlength=110)
    assert [times[label == LABELS].sum() for label in (1, 2, 3, 4)] == [27] * 4
    # No example comes again before all of its class have come: the class of one image goes round.
    assert times[LABELS != 3].max() == 1 and set(times[LABELS == 3]) == {2, 3}
    places = {tuple(LABELS[row]) for row in first.reshape(-1, 4)}
    assert len(places) > 5  # classes are not always in the same rows


def test_classes_of_one_member(data):
    rounds = cub.class_rounds(np.asarray([7, 9, 9]), 0, 0)
    assert len(rounds) == 2 and 0 in rounds
    alone = cub.class_rounds(np.asarray([3, 1, 2]), 0, 5)
    assert sorted(alone) == [0, 1, 2]


def test_texts_match_the_images_of_their_class(data):
    source = open_cub(data)
    test = source.retrieval("test")
    assert list(test.relevance) == ["class"]
    match = np.asarray(test.relevance["class"].match(*test.relevance["class"][:2]))
    classes = np.asarray([5, 5, 5, 6, 6])
    np.testing.assert_array_equal(match, classes[:, None] == np.repeat(classes, 10)[None])
    assert len(source.retrieval("dev").items["text"]) == 20
    assert test.extras["captions"][49] == "this bird number 6 is red, line 9."
    whole = open_cub(data, whole_image=True).train[0]
    assert whole["aspect"] == pytest.approx(44 / 50)


def test_missing_data_is_explained(tmp_path):
    config = get_config()
    config.data.dir = str(tmp_path)
    with pytest.raises(FileNotFoundError) as raised:
        runs.build(config)
    for words in ("prepared.json", "vision.caltech.edu", "reedscot", "python -m jcmr.prepare cub"):
        assert words in str(raised.value)


def test_the_config_fits_the_data(data):
    """Both stages are traced, without the minutes that compiling them would take."""
    config = get_config("smoke")
    config.data.dir = str(data)
    source, task = runs.build(config)
    reader = launch.make_reader(config, source)
    stages = launch.plan(config, reader.steps_per_epoch)
    assert [(stage.name, stage.start, stage.end) for stage in stages] == [
        ("heads", 0, 27),
        ("all", 27, 54),
    ]
    batch = next(reader)
    prepare_batch, augment = image.make_prepare(config.data), image.make_augment(config.data)
    variables = jax.eval_shape(task.init, jax.random.key(0), prepare_batch(batch))
    for stage in stages:
        optimizer = stage.make_optimizer(variables["params"])
        state = jax.eval_shape(
            lambda v, o=optimizer: init_state(v, o, jax.random.key(0)), variables
        )
        step = make_train_step(task, optimizer, augment)
        after, logs = jax.eval_shape(lambda s, b, step=step: step(s, b, None), state, batch)
        assert jax.tree.map(np.shape, after) == jax.tree.map(np.shape, state)
        assert {"match", "vib_image", "uniformity", "loss"} <= logs.keys()


def test_unseen_classes_are_evaluated(data):
    config = get_config("smoke")
    split = open_cub(data).retrieval("test")
    matches = np.repeat([5, 5, 5, 6, 6], 10)[None] == np.asarray([5, 5, 5, 6, 6])[:, None]
    task, mesh = table_task(matches.astype(np.float32)), parallel.make_mesh(jax.devices()[:1])
    found = retrieval.make_evaluator(task, split, config.eval, lambda batch: batch, mesh)({})
    for direction in ("i2t", "t2i"):
        assert found.metrics[f"test/{direction}/r@1"] == 100
        for name in ("r_precision", "map@r"):
            assert found.metrics[f"test/{direction}/{name}"] == 1
    assert found.metrics["test/i2t/p@50"] == pytest.approx(26 / 50)  # 3 x 30 and 2 x 20 of 5 x 50
