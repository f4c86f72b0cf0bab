"""Any run from Python: load, encode, score, rank, search."""

import dataclasses
import json
import re
import shutil
import subprocess
import sys
import threading

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image

import jcmr
from jcmr import launch
from jcmr.convert.folder import save_converted
from jcmr.core import parallel
from jcmr.core.types import split_list
from jcmr.data import augment
from jcmr.eval.embed import embed
from jcmr.eval.tiles import score_tile
from jcmr.index import __main__ as index
from jcmr.serve import runs
from jcmr.serve.programs import buckets
from tests.smoke_runs import CONFIGS, ROOT, SMALL, one_device, raw_items, smoke_config

OUTSIDE = """
import json, sys
sys.modules["jcmr"] = None
from pathlib import Path
import jax, numpy as np
from safetensors.numpy import load_file

for folder in map(Path, sys.argv[1:]):
    manifest = json.loads((folder / "manifest.json").read_text())
    weights = load_file(folder / manifest["weights"])
    given = dict(np.load(folder.parent / "given.npz"))

    def load(file):
        return jax.export.deserialize((folder / file).read_bytes())

    sides = {}
    for modality, entry in manifest["encode"].items():
        batch = {name: given[f"{modality}/{name}"] for name in entry["inputs"]}
        sides[modality] = load(entry["file"]).call(weights, batch)
    for pair in manifest["score"]:
        sides_of_pair = sides[pair["query"]], sides[pair["gallery"]]
        scores = load(pair["file"]).call(weights, *sides_of_pair)
        np.save(folder.parent / f"{pair['query']}_{pair['gallery']}.npy", scores)
"""


def evaluated(scorer, split):
    """Scores [n, m] of a split, computed as the evaluator does, on one device."""
    task, prepare, mesh = (
        scorer.run.task,
        augment.make_prepare(scorer.run.config.data),
        one_device(),
    )
    sides = [
        embed(task, scorer.run.variables, items, name, 2, prepare, mesh)
        for name, items in split.items.items()
    ]
    outer, inner = (jax.tree.map(lambda x: x[None], side) for side in sides)
    return np.asarray(score_tile(task.score, False, mesh, scorer.run.variables, outer, inner, 0, 0))


@pytest.mark.parametrize("name", CONFIGS)
def test_scores_are_those_of_the_evaluator(made, name):
    """load -> encode -> search, for every system, from raw items."""
    workdir, scorer = made(name)
    source, _ = runs.build(ConfigDict(json.loads((workdir / "config.json").read_text())["config"]))
    splits = [s for s in split_list(source.retrieval("test")) if len(s.items) == 2]
    split = splits[-1]
    expected = evaluated(scorer, split)
    queries, gallery = (
        scorer.encode(m, raw_items(split, m), ids=range(len(split.items[m]))) for m in split.items
    )
    np.testing.assert_allclose(scorer.score(queries, gallery), expected, atol=1e-6, rtol=1e-6)
    np.testing.assert_allclose(scorer.score(gallery, queries), expected.T, atol=1e-6, rtol=1e-6)
    for asked, items, scores in ((queries, gallery, expected), (gallery, queries, expected.T)):
        found = scorer.search(asked, items, k=3)
        best = np.sort(scores, axis=1)[:, ::-1][:, :3]
        np.testing.assert_allclose(found.scores, best, atol=1e-6, rtol=1e-6)
        chosen = np.take_along_axis(scores, found.ids, axis=1)
        np.testing.assert_allclose(chosen, best, atol=1e-6, rtol=1e-6)


def captions(scorer, n):
    words = ["a red circle", "a small blue square and a green circle", "a circle"]
    return scorer.encode("text", [words[i % 3] for i in range(n)])


def pictures(n, size=48):
    return np.random.default_rng(0).integers(0, 256, (n, size, size, 3), dtype=np.uint8)


def test_ranks_and_searches_agree(made):
    _, scorer = made()
    texts, images = captions(scorer, 3), scorer.encode("image", pictures(21))
    order = scorer.rank(texts, images)
    assert sorted(order[0]) == list(range(21))
    found = scorer.search(texts, images, k=5)
    np.testing.assert_array_equal(found.ids, order[:, :5])
    whole = scorer.search(texts, images, k=30)
    np.testing.assert_array_equal(whole.ids[:, :21], order)
    assert (whole.ids[:, 21:] == -1).all() and (whole.scores[:, 21:] == -np.inf).all()
    within = scorer.search(images[:2], images, k=1)  # PCME compares images with each other
    assert within.ids.shape == (2, 1)


def test_two_stages_rescore_exactly(made):
    _, scorer = made("imram_scenes")
    texts, images = captions(scorer, 3), scorer.encode("image", pictures(12))
    exact = scorer.search(texts, images, k=3)
    all_of_them = scorer.search(texts, images, k=3, candidates=11)
    recall = scorer.first_stage_recall(texts, images, k=3, candidates=11)
    assert 3 * 3 * (1 - recall) == pytest.approx((all_of_them.ids != exact.ids).sum(), abs=2)
    some = scorer.search(texts, images, k=3, candidates=4)
    scores = scorer.score(texts, images)
    chosen = np.take_along_axis(scores, some.ids, axis=1)
    np.testing.assert_allclose(some.scores, chosen, rtol=1e-6)
    assert (np.diff(some.scores) <= 0).all()
    assert scorer.first_stage_recall(texts, images, k=3, candidates=12) == 1.0


def test_nothing_compiles_after_warming_up(made):
    _, scorer = made()
    gallery = scorer.encode("image", pictures(9))
    programs = scorer.warm_up([gallery], k=3)
    compiled = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, *_, **__: compiled.append(event) if "backend_compile" in event else None
    )
    rng = np.random.default_rng(0)
    for _ in range(30):
        texts = captions(scorer, int(rng.integers(1, 10)))
        images = scorer.encode("image", pictures(int(rng.integers(1, 10))))
        scorer.score(texts, images)
        scorer.score(images, texts)
        scorer.search(texts, gallery, k=int(rng.integers(3, 5)))
    assert not compiled and len(scorer.programs.made) == programs


def test_threads_get_what_one_gets(made):
    workdir, one = made()
    scorer = jcmr.Scorer.load(workdir, devices=jax.devices()[:1], **SMALL)
    images, found = pictures(7), {}

    def work(number):
        gallery = scorer.encode("image", images)
        found[number] = scorer.search(captions(scorer, number), gallery, k=2).scores

    threads = [threading.Thread(target=work, args=(number,)) for number in (1, 2, 3, 4, 2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    gallery = one.encode("image", images)
    for number, scores in found.items():
        expected = one.search(captions(one, number), gallery, k=2).scores
        np.testing.assert_allclose(scores, expected, atol=1e-5)


def test_several_devices_give_the_same(made):
    workdir, one = made()
    two = jcmr.Scorer.load(workdir, devices=jax.devices()[:2], **SMALL)
    assert two.fingerprint == one.fingerprint
    images = pictures(5)
    a, b = ((captions(s, 3), s.encode("image", images)) for s in (one, two))
    np.testing.assert_allclose(two.score(*b), one.score(*a), atol=1e-5)
    np.testing.assert_array_equal(two.search(*b, k=2).ids, one.search(*a, k=2).ids)


def test_pictures_of_every_kind_are_one(made, tmp_path):
    _, scorer = made()
    pixels = pictures(1, 60)[0]
    Image.fromarray(pixels).save(tmp_path / "a.png")
    kinds = [pixels, Image.fromarray(pixels), tmp_path / "a.png", str(tmp_path / "a.png")]
    kinds.append((tmp_path / "a.png").read_bytes())
    means = scorer.encode("image", kinds).values.mean
    np.testing.assert_allclose(means, means[:1].repeat(len(kinds), 0), atol=1e-6)


def test_an_item_embeds_the_same_in_every_call(made):
    _, scorer = made()
    images = pictures(6)
    whole = scorer.encode("image", images).values.samples
    alone = scorer.encode("image", images[5:]).values.samples
    np.testing.assert_allclose(alone[0], whole[5], atol=1e-6)


def test_embeddings_can_be_kept(made, tmp_path):
    _, scorer = made()
    texts = captions(scorer, 3)
    texts.save(tmp_path / "texts.npz")
    again = scorer.load_embeddings(tmp_path / "texts.npz")
    jax.tree.map(np.testing.assert_array_equal, again.values, texts.values)
    assert again == dataclasses.replace(texts, values=again.values)
    (tmp_path / "texts.npz").write_bytes(b"no archive")
    with pytest.raises(ValueError, match="holds no embeddings"):
        scorer.load_embeddings(tmp_path / "texts.npz")


def test_uncertainty_is_that_of_the_system(made):
    _, scorer = made()
    texts = captions(scorer, 3)
    expected = texts.values.log_var.mean(-1)
    np.testing.assert_allclose(scorer.uncertainty(texts), expected, rtol=1e-6)
    _, other = made("gpldan_scenes")
    with pytest.raises(ValueError, match="gpldan embeds points; it has no uncertainty"):
        other.uncertainty(captions(other, 1))


def test_objects_from_files_and_arrays(made, tmp_path):
    _, scorer = made("center3d_shapes")
    vertices = np.array([[0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1]], float)
    triangles = np.array([[0, 1, 2], [0, 1, 3], [0, 2, 3], [1, 2, 3]])
    off = ["OFF", "4 4 0", *(" ".join(map(str, v)) for v in vertices)]
    off += ["3 " + " ".join(map(str, t)) for t in triangles]
    (tmp_path / "a.off").write_text("\n".join(off) + "\n")
    solid = scorer.encode("mesh", [(vertices, triangles), tmp_path / "a.off"])
    np.testing.assert_allclose(solid.values.feature[0], solid.values.feature[1], atol=1e-6)
    cloud = np.random.default_rng(0).normal(size=(100, 3))
    np.save(tmp_path / "a.npy", cloud)
    points = scorer.encode("points", [cloud, tmp_path / "a.npy"])
    np.testing.assert_allclose(points.values.feature[0], points.values.feature[1], atol=1e-6)
    views = scorer.encode("image", [list(pictures(2)), pictures(2)])
    np.testing.assert_allclose(views.values.feature[0], views.values.feature[1], atol=1e-6)
    with pytest.raises(ValueError, match=r"Item 1 \(image\) has the shape"):
        scorer.encode("image", [pictures(2), pictures(3)])
    with pytest.raises(ValueError, match=r"points.* expected points"):
        scorer.encode("points", [np.zeros((5, 2))])
    with pytest.raises(ValueError, match=r"mesh.* of their indices"):
        scorer.encode("mesh", [(vertices, triangles + 4)])


@pytest.mark.parametrize(
    ("modality", "items", "sentence"),
    [
        ("sound", ["a"], "pcme encodes image, text, not 'sound'"),
        ("image", ["a red circle"], "Item 0 (image): expected a picture, but there is no file"),
        ("image", [pictures(1)[0], 3], "Item 1 (image): expected a path, a PIL image"),
        ("image", [np.zeros((8, 8, 3))], "found float64 [8, 8, 3]"),
        ("image", [np.zeros((8, 8, 4), np.uint8)], "found uint8 [8, 8, 4]"),
        ("image", [b"no picture"], "cannot be read"),
        ("image", [{"pixels": 1}], "expected image, found pixels"),
        (
            "image",
            [{"image": np.zeros((4, 4, 3), np.uint8)}],
            "as uint8 [48, 48, 3], this is uint8",
        ),
        ("text", [Image.new("RGB", (4, 4))], "Item 0 (text): expected a text, found Image"),
        ("text", ["a", " "], "Item 1 (text): expected a text, but ' ' has no words"),
        ("text", [], "There is no text to encode: the list is empty"),
        ("text", "a red circle", "encode takes a list of items, not one str"),
    ],
)
def test_bad_items_are_refused_in_a_sentence(made, modality, items, sentence):
    _, scorer = made()
    with pytest.raises((ValueError, FileNotFoundError), match=re.escape(sentence)):
        scorer.encode(modality, items)


def test_bad_comparisons_are_refused_in_a_sentence(made):
    _, scorer = made()
    _, other = made("imram_scenes")
    texts, images = captions(scorer, 2), scorer.encode("image", pictures(2))
    with pytest.raises(ValueError, match="image embeddings were made by another model"):
        scorer.score(texts, other.encode("image", pictures(2)))
    with pytest.raises(ValueError, match="imram has no score of text with text"):
        other.score(captions(other, 1), captions(other, 1))
    with pytest.raises(ValueError, match="Expected what `encode` returns, found list"):
        scorer.search(["a circle"], images)
    with pytest.raises(ValueError, match="There are no text embeddings to compare"):
        scorer.score(texts[:0], images)
    with pytest.raises(ValueError, match="k is 0 and candidates 0"):
        scorer.search(texts, images, k=0)
    with pytest.raises(ValueError, match="There are 2 items and 1 ids"):
        scorer.encode("text", ["a", "b"], ids=[1])


def test_folders_that_cannot_be_loaded_say_why(made, tmp_path):
    workdir, _ = made()
    with pytest.raises(FileNotFoundError, match="is no --workdir of a run"):
        jcmr.Scorer.load(tmp_path)
    shutil.copy(workdir / "config.json", tmp_path)
    with pytest.raises(FileNotFoundError, match="holds no finished checkpoint"):
        jcmr.Scorer.load(tmp_path)
    with pytest.raises(FileNotFoundError, match="There is no checkpoint"):
        jcmr.Scorer.load(workdir / "checkpoints" / "7")
    copy = tmp_path / "copy"
    shutil.copytree(workdir, copy)
    words = json.loads((copy / "vocabulary.json").read_text())["word2idx"]
    words["another"] = len(words)
    (copy / "vocabulary.json").write_text(json.dumps({"word2idx": words}))
    with pytest.raises(ValueError, match="is not the vocabulary that the run was trained with"):
        jcmr.Scorer.load(copy)


def test_another_version_is_refused(made, monkeypatch):
    workdir, _ = made()
    monkeypatch.setattr(jcmr, "__version__", "0.2.0")
    with pytest.raises(ValueError, match=r"was written by jcmr 0.1.0, this is 0.2.0"):
        jcmr.Scorer.load(workdir)


def test_a_run_needs_no_data(made, monkeypatch):
    workdir, _ = made("gcn_scenes")
    monkeypatch.setattr(runs, "build", None)
    step = next(path for path in (workdir / "checkpoints").iterdir() if path.name.isdecimal())
    scorer = jcmr.Scorer.load(step, devices=jax.devices()[:1], **SMALL)
    assert scorer.fingerprint == made("gcn_scenes")[1].fingerprint


def test_a_run_of_before_opens_its_data(made, tmp_path, monkeypatch):
    """What an older version left: no vocabulary.json, no example."""
    workdir, scorer = made()
    old = tmp_path / "old"
    shutil.copytree(workdir, old)
    (old / "vocabulary.json").unlink()
    from jcmr.train.checkpoint import Checkpoints

    config = Checkpoints.config

    def without(self, step):
        return {n: x for n, x in config(self, step).items() if n not in ("example", "version")}

    monkeypatch.setattr(Checkpoints, "config", without)
    again = jcmr.Scorer.load(old, devices=jax.devices()[:1], **SMALL)
    assert again.fingerprint == scorer.fingerprint and again.run.vocabulary


def test_converted_weights_are_a_scorer(made, tmp_path):
    _, scorer = made()
    run, folder = scorer.run, tmp_path / "weights"
    saved = {"task": "pcme", "model": run.config.model.to_dict()}
    save_converted(folder, jax.device_get(run.variables), saved, run.vocabulary)
    with pytest.raises(ValueError, match="which do not say how items are read: give the config"):
        jcmr.Scorer.load(folder)
    config = smoke_config("pcme_scenes")
    config.data.image_size, config.data.max_words = 48, run.example["text"].shape[-1]
    again = jcmr.Scorer.load(folder, config, jax.devices()[:1], **SMALL)
    for encoded in (lambda s: captions(s, 2), lambda s: s.encode("image", pictures(2))):
        np.testing.assert_allclose(
            encoded(again).values.mean, encoded(scorer).values.mean, atol=1e-6
        )


def test_the_quick_start_of_the_readme(made, tmp_path, monkeypatch):
    workdir, _ = made()
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "pcme_scenes").symlink_to(workdir)
    (tmp_path / "photos").mkdir()
    for i, pixels in enumerate(pictures(4)):
        Image.fromarray(pixels).save(tmp_path / "photos" / f"{i}.png")
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert blocks
    for block in blocks:
        space: dict = {}
        exec(block, space)
    assert space["scores"].shape == (2, 4) and len(space["best"]) == 3
    assert (tmp_path / "gallery.npz").is_file()


def test_sizes_are_few():
    assert buckets(256, 1, 2) == (1, 2, 4, 8, 16, 32, 64, 128, 256)
    assert buckets(6, 4, 2) == (4, 8)
    assert buckets(1, 8, 2) == (8,)
    assert parallel.make_mesh(jax.devices()).size == 8


def test_an_index_is_built_and_searched_by_a_run(made, tmp_path, capsys):
    def command(name, *given):
        index.main([name, f"--store={tmp_path / 'store'}", *map(str, given)])
        return capsys.readouterr().out

    captions = ["a red circle", "a small blue square", "there is a ring"]
    file = tmp_path / "captions.txt"
    file.write_text("\n".join(captions) + "\n")
    by = f"--run={made('dxr_scenes')[0]}", "--modality=text", f"--items={file}"
    assert "Saved captions: 3 items" in command("build", "--name=captions", *by)
    found = command("search", "--index=captions", "--k=1", *by).splitlines()
    assert [json.loads(line)["hits"][0]["payload"] for line in found] == captions
    assert f"encoder {made('dxr_scenes')[1].fingerprint}" in command("info")
    by = f"--run={made()[0]}", *by[1:]
    with pytest.raises(SystemExit, match="by more than a product of vectors"):
        command("build", "--name=other", *by)
    with pytest.raises(SystemExit):
        command("build", "--name=other", f"--items={file}")
    assert "belong together" in capsys.readouterr().err


def some_items(scorer, source, modality):
    """A few test items as a user would have them; another number for each modality."""
    stored = scorer._stored[modality]

    def fits(split):
        if modality not in split.items:
            return False
        example = split.items[modality][0]
        return all(example[name].shape == like.shape for name, like in stored.items())

    split = next(split for split in split_list(source.retrieval("test")) if fits(split))
    return raw_items(split, modality)[: 2 + scorer.modalities.index(modality)]


def test_the_same_scores_without_jcmr(made, tmp_path):
    folders, expected = [], {}
    for name in CONFIGS:
        workdir, scorer = made(name)
        launch.run_export(workdir)
        folders.append(str(workdir / "export"))
        source, _ = runs.build(scorer.run.config)
        given, sides = {}, {}
        for modality in scorer.modalities:
            items = some_items(scorer, source, modality)
            batch = scorer._read_batch(modality, items, range(len(items)), None)
            given |= {f"{modality}/{key}": x for key, x in batch.items()}
            sides[modality] = scorer.encode(modality, items)
        np.savez(workdir / "given.npz", **given)
        for entry in json.loads((workdir / "export" / "manifest.json").read_text())["score"]:
            pair = entry["query"], entry["gallery"]
            file = workdir / f"{pair[0]}_{pair[1]}.npy"
            expected[file] = scorer.score(*(sides[modality] for modality in pair))
    command = [sys.executable, "-c", OUTSIDE, *folders]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert len(expected) > len(CONFIGS)
    for file, scores in expected.items():
        np.testing.assert_allclose(np.load(file), scores, rtol=1e-6, atol=1e-6, err_msg=str(file))


def test_an_export_says_what_it_is(made):
    workdir, scorer = made("pcme_scenes")
    folder = workdir / "export"
    if not folder.exists():
        launch.run_export(workdir)
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["fingerprint"] == scorer.fingerprint
    assert manifest["encode"]["text"]["inputs"]["text"][:2] == ["int32", "b"]
    assert set(manifest["platforms"]) == {"cpu", "cuda", "tpu"}
    with pytest.raises(FileExistsError, match="export exists; delete it"):
        launch.run_export(workdir)
