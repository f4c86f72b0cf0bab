"""`python -m jcmr.prepare`, on files of the official formats."""

import base64
import errno
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from jcmr import prepare
from jcmr.core import progress
from jcmr.data import prepared as folder
from jcmr.data import tfds_builder
from jcmr.data.image import decode_image
from jcmr.data.prepared import open_prepared
from jcmr.data.sources import captioned_folder, precomp
from jcmr.data.tfds_builder import write_images
from tests.miniatures import (
    BIRDS,
    coco_command,
    cub_command,
    write_coco,
    write_cub,
    write_picture,
)


def fails(command: list[str], capsys) -> str:
    """What a command that must fail says."""
    with pytest.raises(SystemExit) as stopped:
        prepare.main(command)
    assert isinstance(stopped.value.code, str)
    capsys.readouterr()
    return stopped.value.code


@pytest.fixture
def coco(tmp_path) -> Path:
    return write_coco(tmp_path / "coco")


@pytest.fixture
def cub(tmp_path) -> Path:
    return write_cub(tmp_path / "cub")


def test_coco_becomes_array_records_and_an_index(coco, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(progress, "INTERVAL", 0.0)
    monkeypatch.setattr(tfds_builder, "SHARD", 4)
    out = tmp_path / "data" / "coco"
    prepare.main(coco_command(coco, out, "--size=24"))
    said = capsys.readouterr().out
    assert "images: 23 of 23" in said and "per second" in said and "0s left" in said
    assert said.endswith(f"Wrote {out}.\n")
    data = open_prepared(str(out), "coco", "")
    train, dev, test = (data.index(split) for split in ("train", "dev", "test"))
    assert [len(index.names) for index in (train, dev, test)] == [9, 4, 10]
    assert train.names[0] == "COCO_train2014_000000000001.jpg"
    assert train.names[-1] == "COCO_val2014_000000000009.jpg"  # restval is trained on
    assert train.caption_ids[:6] == [100, 101, 102, 103, 104, 200]  # five an image, in order
    assert train.owner == [i for i in range(9) for _ in range(5)]
    assert train.captions[0] == "A green picture, caption 0 of image 1."
    assert train.tokens[0] == "a green picture , caption 0 of image 1 ."
    assert train.columns["image_ids"] == list(range(1, 10))
    assert train.columns["categories"][0] == [1, 89]
    assert test.columns["categories"][-1] == []
    images = data.images("train")
    assert len(images) == 9 and len(list(out.rglob("*train.array_record*"))) == 3
    for place, name in enumerate(train.names):
        pixels = decode_image(images[place])
        assert pixels.shape[0] == 24  # the shorter side
        source = decode_image(next(coco.rglob(name)))
        assert np.abs(pixels[-1, -1].astype(int) - source[-1, -1]).max() < 12
    assert not out.with_name("coco.part").exists()


def test_images_can_be_kept_as_they_are(coco, tmp_path, capsys):
    prepare.main(coco_command(coco, tmp_path / "out", "--size=0"))
    data = open_prepared(str(tmp_path / "out"), "coco", "")
    name = data.index("dev").names[2]
    assert data.images("dev")[2] == next(coco.rglob(name)).read_bytes()
    capsys.readouterr()


def test_tensorflow_is_not_needed(coco, tmp_path):
    """Offline, in a process of its own, with worker processes."""
    code = (
        "import sys; from jcmr import prepare; prepare.main(sys.argv[1:]); "
        "assert not [m for m in sys.modules if m.split('.')[0] == 'tensorflow']"
    )
    command = [*coco_command(coco, tmp_path / "out"), "--workers=2"]
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code, *command],
        cwd=Path(__file__).parents[1], capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0 and not done.stderr.strip(), done.stderr
    assert len(open_prepared(str(tmp_path / "out"), "coco", "").images("train")) == 9


@pytest.mark.parametrize(
    "missing",
    [
        "annotations/dataset_coco.json",
        "annotations/captions_val2014.json",
        "annotations/instances_train2014.json",
        "train2014/COCO_train2014_000000000002.jpg",
        "val2014",
    ],
)
def test_a_missing_file_of_coco_is_named_with_its_origin(coco, tmp_path, capsys, missing):
    path = coco / missing
    path.rename(tmp_path / "elsewhere")
    said = fails(coco_command(coco, tmp_path / "out"), capsys)
    assert f"There is no {path}" in said and "https://" in said
    assert not (tmp_path / "out").exists()


def test_damaged_annotations_are_named(coco, tmp_path, capsys):
    path = coco / "annotations" / "captions_train2014.json"
    content = path.read_bytes()
    path.write_bytes(content[:-20])
    said = fails(coco_command(coco, tmp_path / "out"), capsys)
    assert "captions_train2014.json is not whole UTF-8 JSON" in said
    path.write_bytes(content.replace(b"A green", b"A gr\xe9n"))
    said = fails(coco_command(coco, tmp_path / "out"), capsys)
    assert "captions_train2014.json is not whole UTF-8 JSON" in said and "0xe9" in said
    path.write_bytes(content.replace(b'"id": 201', b'"id": 999'))
    said = fails(coco_command(coco, tmp_path / "out"), capsys)
    assert "Caption 201 of image 2" in said and "not of one data set" in said


def test_a_caption_of_no_words_is_left_out_and_named(coco, tmp_path, capsys):
    path = coco / "annotations" / "captions_train2014.json"
    content = json.loads(path.read_text())
    content["annotations"][1]["caption"] = " \n"
    path.write_text(json.dumps(content))
    prepare.main(coco_command(coco, tmp_path / "out"))
    assert "caption 101 of COCO_train2014_000000000001.jpg: the caption has no words" in (
        capsys.readouterr().out
    )
    assert open_prepared(str(tmp_path / "out"), "coco", "").index("train").caption_ids[:3] == [
        100,
        102,
        103,
    ]
    for annotation in content["annotations"][:6]:
        annotation["caption"] = ""
    path.write_text(json.dumps(content))
    said = fails(coco_command(coco, tmp_path / "again"), capsys)
    assert "COCO_train2014_000000000001.jpg (split train) has no caption with words" in said


def test_an_unreadable_image_is_counted_or_fatal(coco, tmp_path, capsys):
    path = coco / "val2014" / "COCO_val2014_000000000014.jpg"
    path.write_bytes(b"no image")
    said = fails(coco_command(coco, tmp_path / "out", "--strict"), capsys)
    assert str(path) in said and "cannot be read" in said
    prepare.main(coco_command(coco, tmp_path / "out"))
    said = capsys.readouterr().out
    assert f"{path} cannot be read" in said and "(1 so far)" in said
    assert open_prepared(str(tmp_path / "out"), "coco", "").images("test")[0] == b"no image"


def test_a_stopped_command_leaves_nothing_that_looks_whole(coco, tmp_path, capsys, monkeypatch):
    out = tmp_path / "out"

    def killed(*args):
        write_images(*args)
        raise KeyboardInterrupt

    monkeypatch.setattr(folder, "write_images", killed)
    with pytest.raises(KeyboardInterrupt):
        prepare.main(coco_command(coco, out))
    monkeypatch.undo()
    part = out.with_name("out.part")
    assert part.is_dir() and not out.exists()
    with pytest.raises(FileNotFoundError, match=r"out.part is what a prepare command left"):
        open_prepared(str(out), "coco", "Prepare it.")
    with pytest.raises(FileNotFoundError, match=r"There is no .*prepared.json"):
        open_prepared(str(part), "coco", "Prepare it.")
    prepare.main(coco_command(coco, out))
    assert len(open_prepared(str(out), "coco", "").images("test")) == 10
    assert not part.exists()
    assert "exists and is not empty" in fails(coco_command(coco, out), capsys)


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        RuntimeError("write() failed: No space left on device; writing x; at byte 0"),
    ],
)
def test_a_full_disk_is_a_sentence(coco, tmp_path, capsys, monkeypatch, error):
    """The second error is what array_record raises on a full device."""

    def full(*_):
        raise error

    monkeypatch.setattr(folder, "write_images", full)
    said = fails(coco_command(coco, tmp_path / "out"), capsys)
    assert "The disk is full" in said and str(tmp_path / "out") in said and "again" in said
    assert not list(tmp_path.glob("out*"))


def test_array_record_reports_a_full_device():
    """What the test above pretends: /dev/full is a device without space."""
    module = pytest.importorskip("array_record.python.array_record_module")
    writer = module.ArrayRecordWriter("/dev/full", "group_size:1")
    with pytest.raises(RuntimeError, match="No space left"):
        for _ in range(100):
            writer.write(bytes(100_000))
        writer.close()


def test_a_damaged_copy_is_not_whole(coco, tmp_path, capsys):
    out = tmp_path / "out"
    prepare.main(coco_command(coco, out))
    capsys.readouterr()
    with pytest.raises(ValueError, match=r"holds prepared 'coco' data.*reads 'cub'"):
        open_prepared(str(out), "cub", "")
    with pytest.raises(ValueError, match=r"has no split 'val'; it has dev, test, train"):
        open_prepared(str(out), "coco", "").index("val")
    record = next(out.rglob("*test.array_record*"))
    content = record.read_bytes()
    record.write_bytes(content[:-9])
    with pytest.raises(ValueError, match=rf"{record.name} has {len(content) - 9} of .*not whole"):
        open_prepared(str(out), "coco", "")
    record.unlink()
    with pytest.raises(ValueError, match=r"has 0 of \d+ bytes"):
        open_prepared(str(out), "coco", "")
    (out / "prepared.json").write_text("{")
    with pytest.raises(ValueError, match=r"prepared.json is damaged"):
        open_prepared(str(out), "coco", "")


def test_cub_is_split_by_class(cub, tmp_path, capsys):
    prepare.main(cub_command(cub, tmp_path / "out"))
    assert "train: 11 images of 4 classes" in capsys.readouterr().out
    data = open_prepared(str(tmp_path / "out"), "cub", "")
    train, dev, test = (data.index(split) for split in ("train", "dev", "test"))
    assert [train.columns["labels"].count(label) for label in range(1, 7)] == [3, 3, 1, 4, 0, 0]
    assert dev.columns["labels"] == [1, 4] and dev.names[0].endswith("_0004_103.jpg")
    assert test.columns["labels"] == [5, 5, 5, 6, 6]
    assert len(train.captions) == 110 and train.owner[:11] == [0] * 10 + [1]
    assert train.tokens[0] == "this bird number 1 is green , line 0 ."


def test_without_a_list_the_official_halves_are_held_out(cub, tmp_path, capsys):
    (cub / "splits" / "seen_test_images.txt").unlink()
    prepare.main(cub_command(cub, tmp_path / "out"))
    assert "the test images of train_test_split.txt are held out" in capsys.readouterr().out
    data = open_prepared(str(tmp_path / "out"), "cub", "")
    assert data.index("dev").columns["labels"] == [1, 1, 2, 2, 3, 4, 4, 4]


def test_the_layout_of_cub_is_checked(cub, tmp_path, capsys):
    base, splits, command = cub / "CUB_200_2011", cub / "splits", cub_command(cub, tmp_path / "out")
    (base / "images.txt").rename(base / "kept")
    assert f"There is no {base / 'images.txt'}. CUB-200-2011 comes from" in fails(command, capsys)
    (base / "lists").mkdir()
    assert "this is CUB-200 of 2010" in fails(command, capsys)
    (base / "kept").rename(base / "images.txt")
    caption = next((cub / "text_c10" / BIRDS[0]).iterdir())
    content = caption.read_bytes()
    caption.unlink()
    said = fails(command, capsys)
    assert f"There is no {caption}" in said and "are not those of CUB-200 (2010)" in said
    caption.write_bytes(content.replace(b"bird", b"b\xefrd"))
    assert f"{caption}, line 1: byte 7 is not UTF-8" in fails(command, capsys)
    caption.write_bytes(content)
    for name, line, words in (
        ("testclasses.txt", "Crested_Auklet", "lists 'Crested_Auklet', which is no class"),
        ("testclasses.txt", BIRDS[0], f"{BIRDS[0]} is in trainvalclasses.txt and in testclasses"),
        ("seen_test_images.txt", "x/y.jpg", "lists x/y.jpg, which images.txt does not have"),
    ):
        before = (splits / name).read_text()
        (splits / name).write_text(before + line + "\n")
        assert words in fails(command, capsys)
        (splits / name).write_text(before)
    (splits / "testclasses.txt").unlink()
    assert '"Proposed Splits"' in fails(command, capsys)
    (base / "images.txt").write_text("1 a/b.jpg\n")
    assert "list other images" in fails(command, capsys)


def write_flickr(root: Path) -> dict:
    """Pictures, and Karpathy's file of them."""
    images = []
    for number, split in enumerate(("train", "train", "val", "test")):
        write_picture(root / "jpg" / f"{number}.jpg", "red")
        raw = [f"Red picture {number}\twith caption {k} ." for k in range(2)]
        sentences = [{"raw": words, "sentid": 2 * number + k} for k, words in enumerate(raw)]
        images.append({"filename": f"{number}.jpg", "split": split, "sentences": sentences})
    (root / "dataset_flickr8k.json").write_text(json.dumps({"images": images}))
    return {"train": ["0.jpg", "1.jpg"], "dev": ["2.jpg"], "test": ["3.jpg"]}


def check_flickr(out: Path) -> None:
    source = captioned_folder.make({"dir": str(out), "image_size": 16, "max_words": 9})
    assert len(source.train) == 4 and source.train[0]["image"].shape == (16, 16, 3)
    dev = source.retrieval("dev")
    assert dev.extras["captions"] == ["Red picture 2 with caption 0 .", dev.extras["captions"][1]]


def test_a_karpathy_file_becomes_a_captioned_folder(tmp_path, capsys):
    write_flickr(tmp_path)
    command = ["captioned_folder", f"--images={tmp_path / 'jpg'}", f"--out={tmp_path / 'out'}"]
    assert "Give --split=dataset_flickr8k.json" in fails(command, capsys)
    command.append(f"--split={tmp_path / 'dataset_flickr8k.json'}")
    prepare.main(command)
    check_flickr(tmp_path / "out")
    prepare.main(command)  # again, over what is there
    check_flickr(tmp_path / "out")
    (tmp_path / "other").mkdir()
    said = fails([*command, f"--images={tmp_path / 'other'}"], capsys)
    assert f"There is no {tmp_path / 'other' / '0.jpg'}" in said


def test_lists_and_tokens_become_a_captioned_folder(tmp_path, capsys):
    names = write_flickr(tmp_path)
    lines = [f"{n}.jpg#{k}\tRed picture {n} with caption {k} .\n" for n in range(5) for k in (0, 1)]
    (tmp_path / "Flickr8k.token.txt").write_text("".join(lines))  # 4.jpg is in no split
    command = ["captioned_folder", f"--images={tmp_path / 'jpg'}", f"--out={tmp_path}"]
    command.append(f"--captions={tmp_path / 'Flickr8k.token.txt'}")
    for split, chosen in names.items():
        (tmp_path / f"{split}.txt").write_text("".join(f"{name}\n" for name in chosen))
        command.append(f"--{split}={tmp_path / split}.txt")
    prepare.main(command)
    check_flickr(tmp_path)
    write_picture(tmp_path / "jpg" / "9.jpg", "red")
    (tmp_path / "test.txt").write_text("9.jpg\n")
    assert "9.jpg (split test) has no caption" in fails(command, capsys)


@pytest.fixture
def regions(tmp_path):
    """Features of images 30, 10 and 20 in two files, and captions of 10 and 20."""
    rng = np.random.default_rng(0)
    features = {name: rng.normal(size=(4, 6)).astype(np.float32) for name in ("30", "10", "20")}

    def line(name: str, values: np.ndarray) -> str:
        boxes = base64.b64encode(np.zeros((len(values), 4), np.float32).tobytes()).decode()
        cells = (name, "640", "480", str(len(values)), boxes)
        return "\t".join((*cells, base64.b64encode(values.tobytes()).decode())) + "\n"

    (tmp_path / "a.tsv").write_text(line("30", features["30"]) + line("10", features["10"]))
    (tmp_path / "b.tsv").write_text(line("20", features["20"]))
    (tmp_path / "train_ids.txt").write_text("20\n20\n10\n10\n")
    (tmp_path / "train_caps.txt").write_text("".join(f"caption {k}\n" for k in range(4)))
    command = [
        "precomp",
        "--features",
        str(tmp_path / "a.tsv"),
        str(tmp_path / "b.tsv"),
        f"--ids={tmp_path / 'train_ids.txt'}",
        "--split=train",
        f"--out={tmp_path}",
    ]
    return tmp_path, features, command, line


def test_region_features_become_one_array(regions, capsys):
    root, features, command, _ = regions
    prepare.main(command)
    capsys.readouterr()
    stored = np.load(root / "train_ims.npy", mmap_mode="r")
    assert stored.dtype == np.float32
    np.testing.assert_array_equal(stored, np.stack([features["20"], features["10"]]))
    source = precomp.make({"dir": str(root), "captions_per_image": 2})
    assert len(source.train) == 4
    np.testing.assert_array_equal(source.train[3]["regions"], features["10"])
    assert source.retrieval("train").extras["names"] == ["20", "10"]


def test_damaged_region_features_are_named(regions, capsys):
    root, features, command, line = regions
    second = (root / "b.tsv").read_text()
    (root / "b.tsv").write_text(second[:-30])
    assert "b.tsv, line 1: expected image_id" in fails(command, capsys)
    (root / "b.tsv").write_text(line("20", features["20"][:3]))
    said = fails(command, capsys)
    assert "b.tsv, line 1: image 20 has features (3, 6), others have (4, 6)" in said
    (root / "b.tsv").write_text("")
    assert "no features of 1 of the 2 images, for instance 20" in fails(command, capsys)
    assert not (root / "train_ims.npy").exists()
    (root / "b.tsv").unlink()
    said = fails(command, capsys)
    assert f"There is no {root / 'b.tsv'}" in said and "https://" in said


def test_a_disk_too_small_for_features_is_a_sentence(regions, capsys, monkeypatch):
    root, _, command, _ = regions

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.posix_fallocate", full)
    said = fails(command, capsys)
    assert "train_ims.npy" in said and "GiB: No space left on device" in said
    assert not list(root.glob("*_ims.npy*"))


@pytest.mark.parametrize("source", prepare.SOURCES)
def test_every_source_has_help(source, capsys):
    with pytest.raises(SystemExit) as stopped:
        prepare.main([source, "--help"])
    assert stopped.value.code == 0
    assert "https://" in capsys.readouterr().out
