"""COCO from official files to a trained system: prepare, train, evaluate, resume."""

import json
import os
import pickle
import re
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from absl import logging

from configs.pcme_coco import get_config
from jcmr import launch, prepare
from jcmr.core import parallel
from jcmr.data import text
from jcmr.data.eccv_caption import load_matches
from jcmr.data.loader import make_loader
from jcmr.data.sources import coco
from jcmr.eval import retrieval
from jcmr.serve import runs
from jcmr.train.checkpoint import Checkpoints
from jcmr.train.logging import read_records
from tests.miniatures import coco_command, table_task, write_coco, write_glove

TEST_IDS = range(14, 24)


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """The prepared miniature."""
    root = tmp_path_factory.mktemp("coco")
    prepare.main(coco_command(write_coco(root / "raw"), root / "coco"))
    return root / "coco"


def open_coco(folder: Path, **options):
    return coco.make({"dir": str(folder), "image_size": 24, "min_count": 1} | options)


def test_each_caption_is_a_training_example_with_its_image(data):
    source = open_coco(data)
    assert len(source.train) == 45  # 9 images, restval among them, with 5 captions each
    assert source.info == {"vocab_size": len(source.vocabulary)}
    words = {index: word for word, index in source.vocabulary.items()}
    for index in (0, 7, 44):
        example = source.train[index]
        image = int(example["id"])
        assert image == index // 5
        assert example["image"].shape == (24, 24, 3) and example["image"].dtype == np.uint8
        assert example["aspect"] == pytest.approx((41 + image) / 36)
        said = " ".join(words[int(i)] for i in example["text"] if i > text.UNK)
        colour = ["red", "green", "blue"][(image + 1) % 3]
        assert said == f"a {colour} picture , caption {index % 5} of image {image + 1} ."
        assert ["red", "green", "blue"][example["image"][-1, -1].argmax()] == colour
    grouped = open_coco(data, captions_per_item=5).train
    assert len(grouped) == 9 and grouped[3]["text"].shape == (5, 32)


def test_dev_is_the_first_images_of_the_split(data, monkeypatch):
    source = open_coco(data)
    dev = source.retrieval("dev")
    assert len(dev.items["image"]) == 4 and len(dev.items["text"]) == 20
    assert list(dev.relevance) == ["own"]
    monkeypatch.setattr(coco, "NUM_DEV", 3)
    dev = source.retrieval("dev")
    assert len(dev.items["image"]) == 3 and len(dev.items["text"]) == 15
    assert dev.items["image"][2]["id"] == 2
    np.testing.assert_array_equal(
        source.tokenize(dev.extras["captions"]), [dev.items["text"][i]["text"] for i in range(15)]
    )


def test_test_has_protocols_and_plausible_matches(data):
    test = open_coco(data).retrieval("test")
    assert list(test.extras["protocols"]) == ["coco_5k", "coco_1k"]
    images, captions = test.extras["protocols"]["coco_1k"]
    assert images.tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]  # five consecutive folds
    np.testing.assert_array_equal(captions, np.repeat(images, 5))
    annotated, _ = test.extras["annotated"]
    assert annotated.tolist() == [True] * 9 + [False]
    # Image i holds the categories 1 and i % 3 + 88; the last has none.
    kind = np.asarray([i % 3 for i in TEST_IDS])
    apart = np.where(kind[:, None] == kind[None], 0, 2)
    apart[-1, :] = apart[:, -1] = 2
    apart[-1, -1] = 0
    for zeta in (0, 1, 2):
        relation = test.relevance[f"pm{zeta}"]
        match = np.asarray(relation.match(relation.rows, relation.columns))
        np.testing.assert_array_equal(match, np.repeat(apart, 5, axis=1) <= zeta)


def write_eccv(folder: Path) -> None:
    """Images 14 and 15 and captions 1400 and 1600 are judged; their lists agree where both are.

    1505 is a sixth caption, which no split has.
    """
    folder.mkdir(exist_ok=True)
    files = {
        "eccv_image_to_caption": {14: [1400, 1401, 1703], 15: [1500, 1505]},
        "eccv_caption_to_image": {1400: [14, 18], 1600: [16]},
        "cxc_image_to_caption": {14: [1400, 1401], 15: [1402]},
        "cxc_caption_to_image": {1400: [14], 1401: [14], 1402: [15]},
    }
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content))


def test_eccv_caption_is_measured_on_its_own_queries(data, tmp_path):
    write_eccv(tmp_path / "eccv")
    source = open_coco(data, eccv_dir=str(tmp_path / "eccv"))
    test = source.retrieval("test")
    caption_ids = [100 * i + c for i in TEST_IDS for c in range(5)]
    # A system that ranks what it should by a table.
    scores = np.random.default_rng(0).permutation(500).reshape(10, 50).astype(np.float32)
    task = table_task(scores)
    mesh = parallel.make_mesh(jax.devices()[:1])
    cfg = {"tile": (10, 50), "batch_size": 50, "relations": ("eccv", "cxc")}
    found = retrieval.make_evaluator(task, test, cfg, lambda batch: batch, mesh)({}).metrics
    for direction, table, queries, gallery in (
        ("i2t", scores, list(TEST_IDS), caption_ids),
        ("t2i", scores.T, caption_ids, list(TEST_IDS)),
    ):
        side = "image_to_caption" if direction == "i2t" else "caption_to_image"
        for name in ("eccv", "cxc"):
            truth = json.loads((tmp_path / "eccv" / f"{name}_{side}.json").read_text())
            precisions, maps = [], []
            for query, listed in truth.items():
                matches = [match for match in listed if match in gallery]
                order = np.argsort(-table[queries.index(int(query))], kind="stable")
                ranked = np.isin(np.asarray(gallery)[order][: len(matches)], matches)
                precisions.append(ranked.mean())
                at = np.cumsum(ranked) / np.arange(1, len(ranked) + 1)
                maps.append(np.mean(at * ranked))
            prefix = f"coco_5k/{direction}/{name}_"
            assert found[f"{prefix}r_precision"] == pytest.approx(np.mean(precisions))
            assert found[f"{prefix}map@r"] == pytest.approx(np.mean(maps))


def test_files_of_eccv_caption_are_checked(tmp_path):
    write_eccv(tmp_path)
    ids = list(TEST_IDS), [100 * i + c for i in TEST_IDS for c in range(5)]
    found = load_matches(tmp_path, "eccv", *ids)
    assert found.images.nonzero()[0].tolist() == [0, 1]
    assert np.argwhere(found.matrix).tolist() == [[0, 0], [0, 1], [0, 18], [1, 5], [2, 10], [4, 0]]
    with pytest.raises(ValueError, match=r"image_to_caption.json asks for 15, which is not in"):
        load_matches(tmp_path, "eccv", [14, 16, 18], ids[1])
    (tmp_path / "cxc_image_to_caption.json").write_text("[]")
    with pytest.raises(ValueError, match="holds no lists of matches"):
        load_matches(tmp_path, "cxc", *ids)
    (tmp_path / "cxc_image_to_caption.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"cxc_image_to_caption.json. The files are in"):
        load_matches(tmp_path, "cxc", *ids)


def test_images_are_read_when_they_are_used_also_by_workers(data):
    source = open_coco(data)
    assert "source" not in source.train.images.stored.__dict__  # not even opened yet
    opened = source.train[3]
    packed = pickle.dumps(source.train)
    assert b"\xff\xd8\xff" not in packed  # no JPEG travels
    np.testing.assert_array_equal(pickle.loads(packed)[3]["image"], opened["image"])
    loader = make_loader(source.train, 9, 0, workers=1)
    with_worker = [next(loader) for _ in range(2)]
    loader.close()
    alone = make_loader(source.train, 9, 0)
    for batch in with_worker:
        jax.tree.map(np.testing.assert_array_equal, dict(batch), dict(next(alone)))


def test_a_corrupt_image_is_skipped_with_a_count_or_fatal(tmp_path, monkeypatch, capsys):
    raw = write_coco(tmp_path / "raw")
    (raw / "train2014" / "COCO_train2014_000000000002.jpg").write_bytes(b"no image")
    (raw / "val2014" / "COCO_val2014_000000000014.jpg").write_bytes(b"no image")
    prepare.main(coco_command(raw, tmp_path / "coco"))
    capsys.readouterr()
    lines = []
    monkeypatch.setattr(logging, "warning", lambda line, *args: lines.append(line % args))
    source = open_coco(tmp_path / "coco")
    batch = next(make_loader(source.train, 45, 0, shuffle=False))
    assert batch["id"].tolist() == [0] * 5 + [2] * 10 + sorted(list(range(3, 9)) * 5)
    assert not source.retrieval("test").items["image"][0]["image"].any()
    assert re.search(r"COCO_train2014_000000000002.jpg cannot be read.*skipped.*1 so far", lines[0])
    assert re.search(r"COCO_val2014_000000000014.jpg cannot be read.*black", lines[1])
    source = open_coco(tmp_path / "coco", strict=True)
    with pytest.raises(ValueError, match=r"COCO_train2014_000000000002.jpg cannot be read"):
        next(make_loader(source.train, 45, 0))
    with pytest.raises(ValueError, match=r"COCO_val2014_000000000014.jpg cannot be read"):
        source.retrieval("test").items["image"][0]


def test_options_and_vocabularies(data, tmp_path):
    with pytest.raises(ValueError, match=r"no option 'eccv'; did you mean 'eccv_dir'\?"):
        open_coco(data, eccv="x")
    text.save_vocabulary(tmp_path / "v.json", text.build_vocabulary([["picture", "zebra"]]))
    source = open_coco(data, vocabulary=str(tmp_path / "v.json"))
    assert source.info == {"vocab_size": 6}
    rare = open_coco(data, min_count=10).vocabulary
    assert "picture" in rare and "9" not in rare


def configured(folder: Path, **train):
    """The smoke config on the data of `folder`."""
    config = get_config("smoke")
    config.data.dir = str(folder)
    config.train.update(train)
    return config


@pytest.mark.parametrize(
    "name, words",
    [
        ("missing", ("missing/prepared.json", "https://cocodataset.org", "jcmr.prepare coco")),
        ("", ("config.data.dir is not set", "python -m jcmr.prepare coco")),
    ],
)
def test_missing_data_is_explained(name, words):
    with pytest.raises(FileNotFoundError) as raised:
        runs.build(configured(Path(name)) if name else get_config())
    assert launch.ours(raised.value)  # then the command line prints it and no traceback
    for word in words:
        assert word in str(raised.value)


NORM = "Convolution_0", "BatchNorm_0"


def run(options: list[str], cache: Path) -> str:
    environment = {"XDG_CACHE_HOME": str(cache), "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        [sys.executable, "-m", "jcmr.launch", "--config=configs/pcme_coco.py:smoke", *options],
        cwd=Path(__file__).parents[1],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


def saved(workdir: Path, step: int) -> dict[str, np.ndarray]:
    """Arrays of a checkpoint by path."""
    checkpoints = Checkpoints(workdir / "checkpoints")
    arrays = checkpoints.restore_arrays(step)
    checkpoints.close()
    return arrays


def part(arrays: dict[str, np.ndarray], *path: str) -> np.ndarray:
    """The array at `path`."""
    return arrays["".join(f"['{name}']" for name in path)]


def test_it_trains_evaluates_and_resumes(data, tmp_path):
    """Both stages of five steps from :smoke; then the second one again, in another process."""
    write_eccv(tmp_path / "eccv")
    glove = write_glove(tmp_path / "glove.txt", ["zebra", "picture"], 16)
    workdir = tmp_path / "run"
    options = [
        f"--config.data.dir={data}",
        f"--config.data.eccv_dir={tmp_path / 'eccv'}",
        f"--config.train.glove={glove}",
        f"--workdir={workdir}",
        "--config.data.image_size=36",
        "--config.data.crop_size=32",
    ]
    said = run(options, tmp_path / "cache")
    assert "stage heads: steps 1 to 5" in said and "stage all: steps 6 to 10" in said
    assert "1 of " in said and "word vectors from" in said
    results = json.loads((workdir / "results.json").read_text())
    for protocol in ("coco_5k", "coco_1k"):
        for direction in ("i2t", "t2i"):
            for name in ("r@1", "r@10", "pmrp", "pmr@1", "eccv_pmrp"):
                assert 0 <= results[f"{protocol}/{direction}/{name}"] <= 100
    for name in ("eccv_map@r", "eccv_r_precision", "cxc_r@1"):
        assert name in {key.rpartition("/")[2] for key in results}
    records = read_records(workdir / "metrics.jsonl")
    assert [r["step"] for r in records if r["split"] == "train"] == list(range(1, 11))
    assert ["dev/rsum" in r for r in records if r["split"] == "dev"] == [True, True]

    frozen, trained = saved(workdir, 5), saved(workdir, 10)
    words = open_coco(data).vocabulary
    vector = np.asarray(glove.read_text().splitlines()[1].split()[1:], np.float32)
    at = ("params", "text", "embed", "embedding")
    np.testing.assert_array_equal(part(frozen, *at)[words["picture"]], vector)
    assert (part(trained, *at)[words["picture"]] != vector).any()
    # Frozen is frozen, but BatchNorm goes on recording, as in the official code.
    at = ("params", "image", "backbone", *NORM, "scale")
    assert (part(frozen, *at) == 1).all() and (part(trained, *at) != 1).any()
    at = ("mutables", "batch_stats", "image", "backbone", *NORM, "mean")
    assert (part(frozen, *at) != 0).all()

    shutil.rmtree(workdir / "checkpoints" / "10")
    assert "at step 5" in run(options, tmp_path / "cache")
    again = saved(workdir, 10)
    for path, value in trained.items():
        np.testing.assert_array_equal(again[path], value, err_msg=path)

    # The same words under other ids.
    permuted = {w: i if i < 4 else len(words) + 3 - i for w, i in words.items()}
    text.save_vocabulary(tmp_path / "permuted.json", permuted)
    config = configured(data)
    config.data.vocabulary = str(tmp_path / "permuted.json")
    source, task = runs.build(config)
    mesh = parallel.make_mesh(jax.devices()[:1])
    with pytest.raises(ValueError, match="trained with another vocabulary"):
        runs.restore_variables(config, workdir, source, task, mesh)


def test_word_vectors_must_be_there_and_fit(data, tmp_path):
    source, _ = runs.build(configured(data))
    table = {"params": {"text": {"embed": {"embedding": np.zeros((len(source.vocabulary), 16))}}}}
    with pytest.raises(FileNotFoundError, match=r"There is no .*glove.*https://nlp.stanford.edu"):
        runs.with_glove(table, configured(data, glove=str(tmp_path / "glove")), source)
    glove = write_glove(tmp_path / "glove", ["picture"], 3)
    with pytest.raises(ValueError, match=r"Set config.model.word_dim to 3"):
        runs.with_glove(table, configured(data, glove=str(glove)), source)
