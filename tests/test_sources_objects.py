"""The sources of objects: the embedded solids, ModelNet and voxels."""

import json
import shutil

import h5py
import numpy as np
import pytest

from jcmr.data import objects
from jcmr.data.prepare import modelnet as prepare_modelnet
from jcmr.data.shapes import families, solid
from jcmr.data.sources import modelnet, shapes, voxels
from tests.miniatures import off_text

TINY = solid.Preset(16, 3, 40, 192, 12)


# The embedded solids


@pytest.mark.parametrize("family", families.FAMILIES)
def test_families(family):
    for seed in range(6):
        vertices, triangles = solid.make_solid(np.random.default_rng(seed), family, TINY)
        assert np.isfinite(vertices).all() and 12 <= len(triangles) <= TINY.num_faces
        assert 0 <= triangles.min() <= triangles.max() < len(vertices)
        assert np.sqrt((vertices**2).sum(axis=1)).max() == pytest.approx(1)
    _, full = solid.make_solid(np.random.default_rng(0), family, solid.PRESETS["full"])
    assert len(full) <= 1024


def test_solids_do_not_depend_on_order():
    whole = shapes.make_items(0, 15, 3, 100, TINY)
    part = shapes.make_items(12, 15, 3, 100, TINY)
    for name, column in part.items():
        np.testing.assert_array_equal(column, whole[name][12:])
    np.testing.assert_array_equal(whole["label"], np.arange(15) % len(solid.CLASSES))
    other = shapes.make_items(0, 15, 4, 100, TINY)
    assert (other["points"] != whole["points"]).any()


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shapes")
    sizes = {name: getattr(TINY, name) for name in ("image_size", "stored_views", "stored_points")}
    return shapes.make(
        {
            "source": "shapes", "cache_dir": str(folder), "num_train": 24, "num_test": 12,
            "num_points": 30, "eval_views": (1, 3), **sizes,
        }
    )  # fmt: skip


def test_training_draws_views_and_points(source):
    order = source.order(0, 0)
    assert sorted(order // objects.NUM_DRAWS) == list(range(24))
    assert (source.order(0, 1) != order).any()
    index = int(order[0])
    first, again = source.train[index], source.train[index]
    for name, value in first.items():
        np.testing.assert_array_equal(value, again[name])
    assert first["image"].shape == (2, 16, 16, 3) and first["points"].shape == (30, 3)
    assert len(np.unique(first["points"], axis=0)) == 30
    draws = [source.train[index - index % objects.NUM_DRAWS + d] for d in range(8)]
    assert len({d["image"].tobytes() for d in draws}) > 1


def test_nine_directions_for_each_number_of_views(source):
    splits = source.retrieval("test")
    assert [s.name for s in splits] == ["test/views1"] * 6 + ["test/views3"] * 6
    directions = sum(len(s.items) for s in splits[:6])
    assert directions == 9
    meshes = [s.items["mesh"] for s in splits if "mesh" in s.items]
    assert all(m is meshes[0] for m in meshes)  # so they are embedded once
    assert splits[6].items["image"][0]["image"].shape == (3, 16, 16, 3)
    assert set(splits[0].relevance) == {"class", "others"}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"preset": "huge"}, "demo or full"),
        ({"num_views": 9}, "raise stored_views"),
        ({"num_pionts": 5}, "did you mean 'num_points'"),
    ],
)
def test_wrong_options_of_shapes(options, words):
    with pytest.raises(ValueError, match=words):
        shapes.make({"source": "shapes", **options})


# ModelNet


@pytest.fixture(scope="module")
def off_folder(tmp_path_factory):
    """ModelNet in small: the third axis is up."""
    folder = tmp_path_factory.mktemp("off")
    for kind in ("chair", "ring"):
        for part, numbers in (("train", range(1, 5)), ("test", range(5, 7))):
            for number in numbers:
                rng = np.random.default_rng(number)
                vertices, triangles = solid.make_solid(rng, kind, TINY)
                path = folder / kind / part / f"{kind}_{number:04d}.off"
                path.parent.mkdir(parents=True, exist_ok=True)
                upright = vertices[:, [0, 2, 1]] * [1, -1, 1]
                path.write_text(off_text(upright, triangles, "OFF{} {} 0\n"))
    return folder


SIZES = prepare_modelnet.Sizes(50, 64, 3, 24)


@pytest.fixture(scope="module")
def prepared(off_folder, tmp_path_factory):
    out = tmp_path_factory.mktemp("prepared") / "modelnet"
    prepare_modelnet.prepare(off_folder, out, SIZES, workers=1)
    return out


def open_modelnet(folder, **options):
    sizes = {"num_points": 32, "num_faces": 64, "image_size": 24, "eval_views": (1, 3)}
    return modelnet.make({"source": "modelnet", "dir": str(folder), **sizes, **options})


def test_prepared_modelnet(prepared):
    source = open_modelnet(prepared)
    assert source.info == {"num_classes": 2} and source.class_names == ("chair", "ring")
    order = source.order(0, 0)
    example = source.train[int(order[0])]
    shapes_of = {name: x.shape for name, x in example.items()}
    assert shapes_of == {
        "image": (2, 24, 24, 3), "points": (32, 3), "faces": (64, 15), "neighbors": (64, 3),
        "label": (), "id": (),
    }  # fmt: skip
    splits = source.retrieval("test")
    assert len(splits) == 12 and len(splits[0].items["image"]) == 4
    item = splits[1].items["points"][2]["points"]
    np.testing.assert_array_equal(item, splits[1].items["points"][2]["points"])
    assert len(np.unique(item, axis=0)) == 32
    parity = open_modelnet(prepared, parity=True).retrieval("test")[1].items["points"]
    assert len(np.unique(parity[2]["points"], axis=0)) < 32
    chairs = [source.parts["train"].points[i] for i in range(4)]
    assert all(np.ptp(c[:, 1]) > 0.5 for c in chairs)


def test_one_modality_needs_only_its_files(prepared, tmp_path):
    (tmp_path / "points").symlink_to(prepared / "points")
    source = open_modelnet(tmp_path, modalities=("points",))
    assert set(source.train[0]) == {"points", "label", "id"}
    assert [s.name for s in source.retrieval("dev")] == ["dev"]
    with pytest.raises(FileNotFoundError, match="8 of 8 train objects are incomplete"):
        _ = open_modelnet(tmp_path).train


def copy_of(prepared, tmp_path):
    return shutil.copytree(prepared, tmp_path / "copy")


def test_missing_views_are_refused_or_left_out(prepared, tmp_path):
    folder = copy_of(prepared, tmp_path)
    (folder / "images/chair/chair_0002/chair_0002.1.png").unlink()
    (folder / "mesh/ring/ring_0003.npz").unlink()
    with pytest.raises(FileNotFoundError, match="chair_0002 has 1 of 3 views"):
        _ = open_modelnet(folder).train
    source = open_modelnet(folder, missing="drop")
    assert len(source.order(0, 0)) == 6
    with pytest.raises(ValueError, match="refuse or drop"):
        open_modelnet(folder, missing="guess")


def test_both_spellings_and_damaged_meshes(prepared, tmp_path):
    folder = copy_of(prepared, tmp_path)
    path = folder / "mesh/chair/chair_0001.npz"
    with np.load(path) as file:
        faces, neighbors = file["faces"], file["neighbors"]
    rng = np.random.default_rng(0)
    np.savez(path, face=faces, neighbor_index=neighbors)
    np.testing.assert_array_equal(modelnet.read_mesh(path, 64, rng)[0], faces)
    for arrays, words in (
        ({"faces": faces}, "neighbors"),
        ({"faces": faces[:, :9], "neighbors": neighbors}, "expected"),
        ({"faces": faces, "neighbors": neighbors + 60}, "no faces of it"),
    ):
        np.savez(path, **arrays)
        with pytest.raises(ValueError, match=words) as error:
            modelnet.read_mesh(path, 64, rng)
        assert "chair_0001.npz" in str(error.value)
    np.savez(path, faces=faces, neighbors=neighbors)
    with pytest.raises(ValueError, match=r"chair_0001.npz: A mesh of 64 faces does not fit"):
        modelnet.read_mesh(path, 32, rng)
    path.write_bytes(b"PK")
    with pytest.raises(ValueError, match=r"chair_0001.npz is no MeshNet file"):
        modelnet.read_mesh(path, 64, rng)


def test_damaged_points_are_named(prepared, tmp_path):
    folder = copy_of(prepared, tmp_path)
    names = folder / "points/ply_data_train_0_id2file.json"
    listed = json.loads(names.read_text())
    names.write_text(json.dumps(listed[:-1]))
    with pytest.raises(ValueError, match="do not belong together"):
        _ = open_modelnet(folder).train
    names.write_text(json.dumps([listed[-1], *listed[1:]]))
    with pytest.raises(ValueError, match="stands for"):
        _ = open_modelnet(folder).info
    names.write_text("[1, 2]")
    with pytest.raises(ValueError, match="no list of names"):
        _ = open_modelnet(folder).train
    names.unlink()
    with pytest.raises(FileNotFoundError, match="it names the objects"):
        _ = open_modelnet(folder).train
    names.write_text(json.dumps(listed))
    (folder / "points/ply_data_train0.h5").write_bytes(b"no HDF5")
    with pytest.raises(ValueError, match=r"ply_data_train0.h5 is no whole HDF5"):
        _ = open_modelnet(folder).train
    with pytest.raises(FileNotFoundError, match=r"jcmr.prepare modelnet"):
        _ = open_modelnet(tmp_path).train
    with pytest.raises(ValueError, match="is empty"):
        modelnet.make({"source": "modelnet"})


def test_files_of_points_are_joined_in_numeric_order(tmp_path):
    for number in (0, 2, 10):
        with h5py.File(tmp_path / f"ply_data_test{number}.h5", "w") as file:
            file["data"], file["label"] = np.full((1, 4, 3), number, "f4"), np.zeros((1, 1), "u1")
        listed = tmp_path / f"ply_data_test_{number}_id2file.json"
        listed.write_text(json.dumps([f"x/chair/chair_{number}.ply"]))
    clouds, _, names = modelnet.read_points(tmp_path, "test")
    assert clouds[:, 0, 0].tolist() == [0, 2, 10]
    assert names == ["chair/chair_0", "chair/chair_2", "chair/chair_10"]


def test_preparation_stops_at_damaged_files(off_folder, prepared, tmp_path):
    with pytest.raises(FileExistsError, match="exists already"):
        prepare_modelnet.prepare(off_folder, prepared, SIZES, workers=1)
    with pytest.raises(FileNotFoundError, match="holds no"):
        prepare_modelnet.prepare(tmp_path, tmp_path / "out", SIZES, workers=1)
    path = tmp_path / "off/chair/train/chair_0001.off"
    path.parent.mkdir(parents=True)
    path.write_text("OFF\n3 1 0\n0 0 0\n1 0 0\n2 0 0\n3 0 1 2\n")
    with pytest.raises(ValueError, match=r"chair_0001.off holds no triangle"):
        prepare_modelnet.prepare(tmp_path / "off", tmp_path / "out", SIZES, workers=1)
    assert not (tmp_path / "out").exists()


# Voxels


@pytest.fixture(scope="module")
def voxel_file(tmp_path_factory):
    rng = np.random.default_rng(0)
    arrays = {"class_names": np.array(["bar", "block"])}
    for part, num in (("train", 22), ("test", 6)):
        grids = np.zeros((num, 30, 30, 30), np.uint8)
        labels = np.arange(num) * 2 // num
        for grid, label in zip(grids, labels):
            w, d, h = (rng.integers(3, 6), 4, 20) if label == 0 else rng.integers(8, 16, 3)
            grid[5 : 5 + w, 5 : 5 + d, 2 : 2 + h] = 1
        grids[3] = 0
        arrays |= {f"x_{part}": np.packbits(grids.reshape(num, -1), axis=1), f"y_{part}": labels}
    path = tmp_path_factory.mktemp("voxels") / "modelnet10.npz"
    np.savez(path, **arrays)
    return path


def open_voxels(path, **options):
    sizes = {
        "image_size": 16, "stored_views": 4, "stored_points": 40, "num_faces": 64,
        "num_points": 32, "cache_dir": str(path.parent), "make_workers": 1,
    }  # fmt: skip
    return voxels.make({"source": "voxels", "file": str(path), **sizes, **options})


def test_voxels_and_empty_grids(voxel_file):
    source = open_voxels(voxel_file)
    assert len(source.parts["train"]["label"]) + len(source.parts["dev"]["label"]) == 21
    assert len(source.parts["test"]["label"]) == 6
    blank = {name: x[3] for name, x in source.parts["test"].items()}
    assert (blank["image"] == 255).all() and not blank["points"].any()
    tall = source.parts["train"]["points"][0]
    assert np.ptp(tall[:, 1]) > 2 * np.ptp(tall[:, 0])  # the third axis of the grid is up
    assert source.train[0]["faces"].shape == (64, 15)
    assert len(source.retrieval("test")) == 18


def test_wrong_voxel_files_are_named(voxel_file, tmp_path):
    with pytest.raises(FileNotFoundError, match="does not exist"):
        _ = open_voxels(tmp_path / "no.npz").info
    path = tmp_path / "half.npz"
    path.write_bytes(voxel_file.read_bytes()[:-300])
    with pytest.raises(ValueError, match="no whole npz"):
        _ = open_voxels(path).info
    np.savez(path, x_train=np.zeros((2, 3375), np.uint8))
    with pytest.raises(ValueError, match="lacks the array x_test"):
        _ = open_voxels(path).info
