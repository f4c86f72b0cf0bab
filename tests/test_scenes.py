"""The embedded data: reproducible, exact in what matches, and of the statistics it promises."""

import itertools

import numpy as np
import pytest

from jcmr.data import cache
from jcmr.data.scenes import render, world
from jcmr.data.sources import scenes
from jcmr.ops.assignment import injective_match


def source(tmp_path, **options):
    return scenes.make({"source": "scenes", "cache_dir": str(tmp_path), **options})


def test_items_do_not_depend_on_order_or_processes():
    look = world.PRESETS["demo"]._replace(image_size=16)
    whole = scenes.make_items(0, 40, 3, 0, look, 19)
    for first, last in ((30, 40), (0, 30)):
        part = scenes.make_items(first, last, 3, 0, look, 19)
        for name in whole:
            np.testing.assert_array_equal(part[name], whole[name][first:last])
    other = scenes.make_items(0, 40, 4, 0, look, 19)
    assert (other["image"] != whole["image"]).any()


def test_worker_processes_draw_the_same():
    look = world.PRESETS["demo"]._replace(image_size=16)
    one, two = (
        cache.make_in_chunks(scenes.make_items, (0, 0, look, 19), 16, workers, 4)
        for workers in (1, 2)
    )
    for name in one:
        np.testing.assert_array_equal(one[name], two[name])


@pytest.mark.parametrize(
    ("preset", "mean", "median", "unique", "ceiling_1", "ceiling_10"),
    [("full", 38.8, 5, 0.36, 0.445, 0.746), ("demo", 16.4, 4, 0.25, 0.385, None)],
)
def test_matches_have_the_promised_statistics(
    tmp_path, preset, mean, median, unique, ceiling_1, ceiling_10
):
    split = source(tmp_path, preset=preset, image_size=8).retrieval("test")
    matches = split.relevance["exact"].rows
    owner = split.relevance["own"].columns
    assert matches[owner, np.arange(5000)].all()
    count = matches.sum(axis=0)
    assert abs(count.mean() - mean) < 0.15 * mean
    assert abs(np.median(count) - median) <= 1
    assert abs((count == 1).mean() - unique) < 0.02
    assert abs((1 / count).mean() - ceiling_1) < 0.02
    if ceiling_10:
        assert abs(np.minimum(1, 10 / count).mean() - ceiling_10) < 0.02


def naive_match(caption, scene):
    """Every way to point each phrase at an object of its own."""
    phrases = [p for p in caption if p[0] != -2]
    objects = [o for o in scene if o[0] >= 0]
    return any(
        all(all(a in (-1, b) for a, b in zip(p, o)) for p, o in zip(phrases, chosen))
        for chosen in itertools.permutations(objects, len(phrases))
    )


def test_match_is_an_injective_assignment():
    items = scenes.make_items(0, 30, 0, 0, world.PRESETS["full"]._replace(image_size=8), 34)
    captions = items["caption_code"].reshape(-1, 4, 4)[::3]
    got = np.asarray(injective_match(captions[None], items["scene_code"][:, None]))
    want = [[naive_match(c, s) for c in captions] for s in items["scene_code"]]
    np.testing.assert_array_equal(got, want)
    shuffled = items["scene_code"][:, [2, 0, 3, 1]]
    np.testing.assert_array_equal(injective_match(captions[None], shuffled[:, None]), got)


def test_two_vague_phrases_need_two_objects():
    caption = np.asarray([[-1, 0, -1, -1], [-1, 0, -1, -1]])
    one_red = np.asarray([[3, 0, 1, 0], [2, 5, 1, 1]])
    two_red = np.asarray([[3, 0, 1, 0], [2, 0, 1, 1]])
    assert not injective_match(caption, one_red)
    assert injective_match(caption, two_red)


def lone(shape, colour, texture, size):
    zeros = np.zeros(1)
    return world.Scene(
        np.asarray([[shape, colour, texture, size]]), np.asarray([4]), zeros,
        np.zeros((1, 2)), zeros, 0,
    )  # fmt: skip


@pytest.mark.parametrize("preset", ["demo", "full"])
def test_every_attribute_can_be_seen(preset):
    look = world.PRESETS[preset]

    def image(*attributes):
        return render.render(lone(*attributes), look, np.random.default_rng(0)).astype(int)

    for kind, count in enumerate((10, 8, 4, 2)):
        seen = []
        for value in range(count):
            attributes = [1, 0, 0, 1]
            attributes[kind] = value
            seen.append(image(*attributes))
        for a, b in itertools.combinations(seen, 2):
            assert (np.abs(a - b).max(axis=-1) > 60).sum() >= 8, kind


def test_occlusion_covers_the_share_it_is_asked_for():
    look = world.PRESETS["demo"]
    scene = lone(1, 0, 0, 1)
    image = render.render(scene, look, np.random.default_rng(0))
    mask = render.object_masks(scene, look, 48)[0]
    red = lambda x: (x[mask][:, 0].astype(int) - x[mask][:, 1] > 100).mean()
    assert red(image) > 0.9
    for rate in (0.0, 0.5, 1.0):
        hidden = render.occlude(image, scene, look, rate, np.random.default_rng(1))
        assert abs(red(hidden) - (1 - rate)) < 0.2


def test_damaged_cache_is_drawn_again(tmp_path):
    options = {"num_train": 12, "num_test": 4, "image_size": 16}
    first = source(tmp_path, **options).train.take(np.arange(12))
    file = next(tmp_path.glob("demo-train-*.npz"))
    file.write_bytes(file.read_bytes()[:-500])
    again = source(tmp_path, **options).train.take(np.arange(12))
    np.testing.assert_array_equal(first["image"], again["image"])
    assert not list(tmp_path.glob("*.partial"))


def test_captions_read_as_sentences_and_fit(tmp_path):
    for preset, words in (("demo", 19), ("full", 33)):
        made = source(tmp_path, preset=preset, num_test=300, image_size=8)
        split = made.retrieval("dev")
        text = split.items["text"].take(np.arange(1500))["text"]
        assert text.shape == (1500, words)
        assert ((text == 3).sum(), (text == 2).sum()) == (0, 1500)
        np.testing.assert_array_equal(made.tokenize(split.extras["captions"]), text)


def test_example_shapes(tmp_path):
    made = source(tmp_path, num_train=6, captions_per_item=4, image_size=16)
    example = made.train[2]
    assert {name: value.shape for name, value in example.items()} == {
        "id": (), "image": (16, 16, 3), "text": (4, 19), "scene_code": (2, 4),
        "caption_code": (4, 2, 4),
    }  # fmt: skip
    single = source(tmp_path, num_train=6, captions_per_item=1, image_size=16).train[2]
    assert single["text"].shape == (19,) and single["caption_code"].shape == (2, 4)


def test_an_epoch_is_every_scene_once_with_some_of_its_captions(tmp_path):
    made = source(tmp_path, num_train=6, captions_per_item=2, image_size=16)
    assert len(made.train) == 30
    epochs = [made.train.take(made.order(0, epoch)) for epoch in range(12)]
    for epoch in epochs:
        assert sorted(epoch["id"]) == list(range(6))
        pairs = zip(epoch["scene_code"], epoch["caption_code"])
        assert all(scenes.exact_relevance(scene[None], caption).all() for scene, caption in pairs)
    np.testing.assert_array_equal(made.order(0, 3), made.order(0, 3))
    assert (made.order(0, 3) != made.order(1, 3)).any()
    drawn = {tuple(epoch["text"][epoch["id"] == 4].ravel()) for epoch in epochs}
    assert len(drawn) == 5
    last = made.train[4 * 6 + 1]["text"]  # the last caption and the first
    np.testing.assert_array_equal(last, made.train.text[1, [4, 0]])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"preset": "huge"}, "demo or full"),
        ({"captions_per_item": 6}, "5 captions"),
        ({"num_trian": 5}, "did you mean 'num_train'"),
    ],
)
def test_wrong_options_are_named(tmp_path, options, words):
    with pytest.raises(ValueError, match=words):
        source(tmp_path, **options)
