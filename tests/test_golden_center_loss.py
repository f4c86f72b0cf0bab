"""The cross-modal center loss, DGCNN and MeshNet against official numbers, file by file."""

import json
import re
from pathlib import Path

import jax
import numpy as np
import optax
import pytest
from flax import linen as nn
from jax import lax
from jax import numpy as jnp

from jcmr.convert import dgcnn as convert_dgcnn
from jcmr.convert import meshnet as convert_meshnet
from jcmr.convert import rules
from jcmr.core import parallel
from jcmr.core.types import RetrievalSplit, Task, same_id
from jcmr.data import mesh, points
from jcmr.data.records import Arrays
from jcmr.eval import retrieval
from jcmr.losses import center
from jcmr.models.center3d import ViewHead, merge_views
from jcmr.models.encoders import dgcnn, meshnet
from jcmr.models.encoders.meshnet import Faces
from jcmr.models.encoders.norm import unit_length
from jcmr.ops import neighbors
from jcmr.train import optim
from tests import test_golden_resnet
from tests.conftest import golden_cases, load_golden
from tests.test_golden_resnet import assert_close, recipe_state, weights

FORWARD, GRADIENT = 1e-5, 1e-4


def rows_last(x):
    """Torch's [b, c, n] as [b, n, c]; vectors [b, c] stay."""
    return np.swapaxes(x, 1, 2) if np.ndim(x) == 3 else x


def check_module(module: nn.Module, mapping, arrays, inputs, extra=()):
    """Outputs, gradients of inputs and weights, and new statistics, in each mode of the file."""
    state = weights(arrays, "w/")
    variables = rules.convert(mapping, state)
    modes = [mode for mode in ("eval", "train") if f"{mode}/out0" in arrays]
    assert modes
    for mode in modes:
        names = [n for n in arrays if re.fullmatch(rf"{mode}/out\d", n)]

        def run(params, inputs, train=mode == "train", names=names):
            given = {**variables, "params": params}
            outs, new = module.apply(given, *inputs, *extra, train, mutable=["batch_stats"])
            outs = outs if isinstance(outs, tuple) else (outs,)
            cotangents = [rows_last(arrays[f"cot{n[-1]}"]) for n in names]
            total = sum((o * c).sum() for o, c in zip(outs, cotangents, strict=True))
            return total, (outs, new["batch_stats"])

        has_gradients = "cot0" in arrays
        if has_gradients:
            call = jax.jit(jax.grad(run, (0, 1), has_aux=True))
            (of_params, of_inputs), (outs, new) = call(variables["params"], inputs)
        else:
            _, (outs, new) = jax.jit(run)(variables["params"], inputs)
        for name, out in zip(names, outs, strict=True):
            assert_close(out, rows_last(arrays[name]), FORWARD)
        if has_gradients:
            check_gradients(mode, mapping, state, arrays, of_params, of_inputs)
        if mode == "train":
            expected = rules.convert(mapping, {**state, **weights(arrays, "train/new/")})
            jax.tree.map(lambda a, e: assert_close(a, e, FORWARD), new, expected["batch_stats"])


def check_gradients(mode, mapping, state, arrays, of_params, of_inputs):
    """Weights whose gradient is zero in theory are not in the file, and must be tiny here."""
    for i, gradient in enumerate(of_inputs):
        assert_close(gradient, rows_last(arrays[f"{mode}/grad_in{i}"]), GRADIENT)
    stored = weights(arrays, f"{mode}/grad_w/")
    if not stored:
        return
    largest = max(np.abs(x).max() for x in stored.values())
    listed = arrays.get(f"{mode}/analytically_zero_grads", ())
    zero = {str(name).split("grad_w/")[-1] for name in listed if name}
    missing = {r.name for p, r in mapping.items() if p[0] == "params"} - stored.keys()
    assert missing <= zero
    filled = {**stored, **{n: np.zeros_like(state[n]) for n in missing}}
    only_params = {p: r for p, r in mapping.items() if p[0] == "params"}
    expected = rules.convert(only_params, filled)["params"]

    def compare(actual, expected):
        if np.abs(expected).max() == 0:
            assert np.abs(actual).max() < GRADIENT * largest
        else:
            assert_close(actual, expected, GRADIENT)

    jax.tree.map(compare, of_params, expected)


@pytest.mark.golden("center_loss", "dgcnn_knn")
def test_neighbors(golden: Path):
    arrays = load_golden(golden)
    x, k = rows_last(arrays["x"]), int(arrays["k"])
    index = neighbors.nearest(jnp.asarray(x), k)
    np.testing.assert_array_equal(index, arrays["idx"])
    np.testing.assert_array_equal(np.sort(index, axis=-1), arrays["idx_sorted"])
    assert_close(neighbors.nearness(x), arrays["neg_sqdist"], FORWARD)

    def edges(x):
        near = neighbors.gather_neighbors(x, index)
        own = jnp.broadcast_to(x[:, :, None], near.shape)
        return jnp.concatenate([near - own, own], axis=-1).transpose(0, 3, 1, 2)

    out, pull_back = jax.vjp(edges, x)
    assert_close(out, arrays["graph_feature"], FORWARD)
    assert_close(pull_back(jnp.asarray(arrays["cot"]))[0], rows_last(arrays["grad_x"]), GRADIENT)


@pytest.mark.golden("center_loss", "dgcnn_edgeconv")
def test_edge_conv(golden: Path):
    arrays = load_golden(golden)
    x, k = rows_last(arrays["x"]), int(arrays["k"])
    index = neighbors.nearest(jnp.asarray(x), k)
    np.testing.assert_array_equal(np.sort(index, axis=-1), arrays["idx_sorted"])
    mapping = {
        **rules.pointwise((), "conv1.0", bias=False),
        **rules.batch_norm(("bn",), "conv1.1"),
    }
    assert (arrays["w/conv1.1.weight"] < 0).any()
    module = dgcnn.EdgeConv(arrays["w/conv1.0.weight"].shape[0], k)
    check_module(module, mapping, arrays, (x,))


def small_dgcnn(arrays, **options):
    sizes = convert_dgcnn.sizes(weights(arrays, "w/"))
    assert sizes["embed_dim"] == int(arrays["emb_dims"])
    return dgcnn.DGCNN(k=int(arrays["k"]), **sizes, **options)


@pytest.mark.golden("center_loss", "dgcnn_cmcl")
def test_dgcnn(golden: Path):
    arrays = load_golden(golden)
    x, module = rows_last(arrays["x"]), small_dgcnn(arrays)
    check_module(module, convert_dgcnn.dgcnn_rules(), arrays, (x,))
    variables = convert_dgcnn.convert_dgcnn(weights(arrays, "w/"))
    look_inside = {"capture_intermediates": True, "mutable": "intermediates"}
    _, found = jax.jit(lambda v, x: module.apply(v, x, **look_inside))(variables, x)
    outputs = [found["intermediates"][f"edge{i}"]["__call__"][0] for i in (1, 2, 3)]
    for i, features in enumerate([x, *outputs]):
        index = np.sort(neighbors.nearest(features, module.k), axis=-1)
        np.testing.assert_array_equal(index, arrays[f"idx_sorted{i}"])


class Wang(nn.Module):
    """The classification network of the paper."""

    trunk: dgcnn.DGCNN
    num_classes: int

    @nn.compact
    def __call__(self, x, train=False):
        return dgcnn.Classifier(self.num_classes, name="classifier")(self.trunk(x, train), train)


@pytest.mark.golden("center_loss", "dgcnn_wang")
def test_dgcnn_classifier(golden: Path):
    arrays = load_golden(golden)
    module = Wang(small_dgcnn(arrays, slope=0.2), arrays["eval/out0"].shape[-1])
    mapping = {
        **convert_dgcnn.dgcnn_rules(("trunk",)),
        **convert_dgcnn.classifier_rules(("classifier",)),
    }
    check_module(module, mapping, arrays, (rows_last(arrays["x"]),))


def full_state(arrays, golden, name):
    shapes = json.loads((golden.parent / "recipe_shapes.json").read_text())[name]
    state = recipe_state(arrays, shapes)
    for norm in range(1, 6):  # bnX and convX.1 are one module: the second name wins
        for part in ("weight", "bias", "running_mean", "running_var"):
            if f"conv{norm}.1.{part}" in state:
                state[f"bn{norm}.{part}"] = state[f"conv{norm}.1.{part}"]
    for tensor, checksum in zip(arrays["checksum_names"], arrays["checksums"], strict=True):
        total = state[str(tensor)].astype(np.float64).sum()
        assert total == pytest.approx(checksum, rel=1e-9, abs=1e-9)
    return state


@pytest.mark.golden("center_loss", "dgcnn_full")
def test_whole_dgcnn(golden: Path):
    arrays = load_golden(golden)
    variables = convert_dgcnn.convert_dgcnn(full_state(arrays, golden, "dgcnn"))
    module = dgcnn.DGCNN(k=int(arrays["k"]), embed_dim=int(arrays["emb_dims"]))
    out = jax.jit(module.apply)(variables, rows_last(arrays["x"]))
    assert_close(out, arrays["eval/out0"], FORWARD)


@pytest.mark.golden("center_loss", "meshnet_spatial")
def test_spatial_descriptor(golden: Path):
    arrays = load_golden(golden)
    widths = [arrays[f"w/spatial_mlp.{i}.weight"].shape[0] for i in (0, 3)]
    mapping = convert_meshnet.mlp_rules((), "spatial_mlp", 2)
    check_module(meshnet.MLP(widths), mapping, arrays, (rows_last(arrays["centers"]),))


@pytest.mark.golden("center_loss", "meshnet_frc")
def test_face_rotate(golden: Path):
    arrays = load_golden(golden)
    widths = [arrays[f"w/{n}_mlp.0.weight"].shape[0] for n in ("rotate", "fusion")]
    mapping = convert_meshnet.rotate_rules((), "")
    check_module(meshnet.FaceRotate(widths), mapping, arrays, (rows_last(arrays["corners"]),))


@pytest.mark.golden("center_loss", "meshnet_fkc")
def test_face_kernel(golden: Path):
    arrays = load_golden(golden)
    _, kernels, vectors = arrays["w/weight_alpha"].shape
    module = meshnet.FaceKernel(kernels, vectors, float(arrays["sigma"]))
    mapping = convert_meshnet.kernel_rules((), "")
    normals, index = rows_last(arrays["normals"]), arrays["neighbor_index"]
    check_module(module, mapping, arrays, (normals,), (index,))


class StructuralOf(nn.Module):
    """From arrays to faces."""

    inner: meshnet.Structural

    @nn.compact
    def __call__(self, corners, normals, index, train=False):
        return self.inner(Faces(normals, corners, normals, index), train)


@pytest.mark.golden("center_loss", "meshnet_structural")
def test_structural_descriptor(golden: Path):
    arrays = load_golden(golden)
    _, kernels, vectors = arrays["w/FKC.weight_alpha"].shape
    module = StructuralOf(
        meshnet.Structural(
            arrays["w/structural_mlp.0.weight"].shape[0],
            [arrays[f"w/FRC.{n}_mlp.0.weight"].shape[0] for n in ("rotate", "fusion")],
            kernels,
            vectors,
        )
    )
    inputs = rows_last(arrays["corners"]), rows_last(arrays["normals"])
    mapping = convert_meshnet.structural_rules(("inner",), "")
    check_module(module, mapping, arrays, inputs, (arrays["neighbor_index"],))


@pytest.mark.golden("center_loss", "meshnet_conv_")
def test_mesh_conv(golden: Path):
    arrays = load_golden(golden)
    aggregation = golden.stem.split("_")[2]
    assert ("w/concat_mlp.0.weight" in arrays) == (aggregation == "concat")
    widths = [arrays[f"w/{n}_mlp.0.weight"].shape[0] for n in ("combination", "aggregation")]
    module = meshnet.MeshConv(*widths, aggregation)
    mapping = convert_meshnet.mesh_conv_rules((), "", aggregation == "concat")
    inputs = rows_last(arrays["spatial"]), rows_last(arrays["structural"])
    check_module(module, mapping, arrays, inputs, (arrays["neighbor_index"],))


class MeshNetOf(nn.Module):
    """From arrays to faces."""

    inner: meshnet.MeshNet

    @nn.compact
    def __call__(self, centers, corners, normals, index, train=False):
        return self.inner(Faces(centers, corners, normals, index), train)


def mesh_inputs(arrays):
    return [rows_last(arrays[name]) for name in ("centers", "corners", "normals")]


@pytest.mark.golden("center_loss", "meshnet_whole")
def test_meshnet(golden: Path):
    arrays = load_golden(golden)
    module = MeshNetOf(meshnet.MeshNet(**convert_meshnet.sizes(weights(arrays, "w/"))))
    mapping = convert_meshnet.meshnet_rules(("inner",))
    check_module(module, mapping, arrays, mesh_inputs(arrays), (arrays["neighbor_index"],))


@pytest.mark.golden("center_loss", "meshnet_full")
def test_whole_meshnet(golden: Path):
    arrays = load_golden(golden)
    variables = convert_meshnet.convert_meshnet(full_state(arrays, golden, "meshnet"))
    faces = Faces(*mesh_inputs(arrays), arrays["neighbor_index"])
    out = jax.jit(meshnet.MeshNet().apply)(variables, faces)
    assert_close(out, arrays["eval/out0"], FORWARD)


@pytest.mark.golden("center_loss", "meshnet_preprocess")
def test_mesh_features(golden: Path):
    arrays = load_golden(golden)
    vertices, triangles = mesh.parse_off(str(arrays["off_text"]), golden.name)
    np.testing.assert_array_equal(triangles, arrays["triangles"])
    np.testing.assert_allclose(vertices, arrays["vertices"], rtol=0, atol=1e-7)  # as printed
    faces = mesh.face_features(mesh.unit_box_centered(vertices), triangles)
    np.testing.assert_allclose(faces, arrays["faces"], rtol=0, atol=1e-6)
    np.testing.assert_array_equal(mesh.face_neighbors(triangles), arrays["neighbors"])


@pytest.mark.golden("center_loss", "pc_augment")
def test_point_augmentation(golden: Path):
    arrays = load_golden(golden)
    scale, shift = (jnp.asarray(arrays[n], jnp.float32) for n in ("scale_xyz1", "shift_xyz2"))
    x = points.translate(jnp.asarray(arrays["points"]), scale, shift)
    assert_close(x, arrays["after_translate"], FORWARD)
    x = points.rotate(x, jnp.float32(arrays["theta"]))
    assert_close(x, arrays["after_rotate"], FORWARD)
    x = points.jitter(x, jnp.asarray(0.01 * arrays["noise"]), 0.02)
    assert_close(x, arrays["after_jitter"], FORWARD)


@pytest.mark.golden("center_loss", "resnet_basicblock")
def test_basic_block(golden: Path):
    arrays = load_golden(golden)
    stride = round(arrays["x"].shape[2] / arrays["eval/out0"].shape[2])
    test_golden_resnet.check_block({**arrays, "stride": stride})


@pytest.mark.golden("center_loss", "singleview")
def test_image_head(golden: Path):
    arrays = load_golden(golden)
    out = arrays["eval/out0"].shape[1]
    pixels = arrays["img"].shape[1]
    shapes = {
        "img_net.0.weight": (out, pixels, 3, 3),
        "linear1.weight": (out, out),
        "bn6.num_batches_tracked": (),
    } | {f"bn6.{part}": (out,) for part in ("weight", "bias", "running_mean", "running_var")}
    state = recipe_state(arrays, shapes)
    kernel = jnp.asarray(state.pop("img_net.0.weight"))
    views = np.stack([arrays["img"], arrays["img_v"]], axis=1).reshape(-1, *arrays["img"].shape[1:])
    x = nn.relu(lax.conv(jnp.asarray(views), kernel, (4, 4), "VALID")).mean((2, 3))
    mapping = {
        **rules.linear(("out",), "linear1", bias=False),
        **rules.batch_norm(("out_bn",), "bn6"),
    }
    variables = rules.convert(mapping, state)
    found = merge_views(ViewHead(out).apply(variables, x), 2, "mean")
    assert_close(found, arrays["eval/out0"], FORWARD)


@pytest.mark.golden("center_loss", "center_loss")
def test_center_loss(golden: Path):
    arrays = load_golden(golden)
    x, centers, labels = (jnp.asarray(arrays[n]) for n in ("x", "centers", "labels"))

    def loss(x, centers):
        total, count = center.center_loss(x, centers, labels)
        return total / count

    value, grads = jax.value_and_grad(loss, (0, 1))(x, centers)
    assert value == pytest.approx(float(arrays["loss"]), rel=FORWARD)
    assert_close(grads[0], arrays["grad_x"], GRADIENT)
    assert_close(grads[1], arrays["grad_centers"], GRADIENT)
    absent = np.setdiff1d(np.arange(len(centers)), arrays["labels"])
    assert not np.asarray(grads[1])[absent].any()


def official_loss(params, labels, arrays):
    """The training loss of the file's free features, and its parts."""
    weight = float(arrays["weight_center"])
    features = [params[n] for n in ("img_feat", "pt_feat", "mesh_feat")]

    def logits(x):
        hidden = nn.relu(x @ params["head.0.weight"].T + params["head.0.bias"])
        return hidden @ params["head.2.weight"].T + params["head.2.bias"]

    cross_entropy = optax.softmax_cross_entropy_with_integer_labels
    ce = sum(cross_entropy(logits(x), labels).mean() for x in features)
    centers = center.with_official_update(params["centers"], weight)
    total, count = center.center_loss(jnp.concatenate(features), centers, jnp.tile(labels, 3))
    mse_total, mse_count = center.pairwise_mse(features)
    mse = mse_total / mse_count
    return ce + weight * total / count + float(arrays["weight_mse"]) * mse, (ce, total / count, mse)


@pytest.mark.golden("center_loss", "cmcl_step")
def test_official_steps(golden: Path):
    """Loss, gradients, and two steps of both optimizers in one."""
    arrays = load_golden(golden)
    heads = weights(arrays, "w/")
    names = ("img_feat", "pt_feat", "mesh_feat", "centers")
    params = {n: jnp.asarray(x) for n, x in {**{n: arrays[n] for n in names}, **heads}.items()}
    labels, weight = jnp.asarray(arrays["labels"]), float(arrays["weight_center"])
    stage = optim.stage_config(
        {
            "optimizer": "sgd",
            "learning_rate": float(arrays["lr"]),
            "momentum": float(arrays["momentum"]),
            "weight_decay": float(arrays["weight_decay"]),
            "schedule": "constant",
            "plain": ("centers",),
            "lr_scales": (("centers", float(arrays["lr_center"] / arrays["lr"])),),
        }
    )
    optimizer = optim.make_optimizer(stage, 10, params)
    opt_state = optimizer.init(params)

    @jax.jit
    def step(params, opt_state):
        call = jax.value_and_grad(lambda p: official_loss(p, labels, arrays), has_aux=True)
        (loss, parts), grads = call(params)
        updates, opt_state = optimizer.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state, loss, parts, grads

    numbers = {int(n[4]) for n in arrays if re.match(r"step\d/", n)}
    for number in sorted(numbers):
        params, opt_state, loss, parts, grads = step(params, opt_state)
        assert loss == pytest.approx(float(arrays[f"step{number}/loss"]), rel=FORWARD)
        if number == 1:
            expected = [arrays[f"{n}_loss"] for n in ("ce", "cmc", "mse")]
            np.testing.assert_allclose(parts, expected, rtol=FORWARD)
            for name, short in zip(names, ("img", "pt", "mesh")):
                assert_close(grads[name], arrays[f"grad_{short}"], GRADIENT)
            assert_close(grads["centers"] * weight, arrays["grad_centers_total"], GRADIENT)
            for name in heads:
                assert_close(grads[name], arrays[f"grad_w/{name}"], GRADIENT)
        for name, expected in weights(arrays, f"step{number}/").items():
            if name != "loss":
                assert_close(params[name], expected, FORWARD)


MODALITIES = {"Image": "img", "Point": "pt", "Mesh": "mesh"}


def retrieve(first, second, labels):
    """mAP of the evaluator: {direction: map}; galleries are (modality, features)."""
    items = {name: Arrays({"x": x}) for name, x in (first, second)}
    task = Task(
        None,  # pyright: ignore[reportArgumentType]
        None,  # pyright: ignore[reportArgumentType]
        {name: lambda v, inputs: unit_length(inputs["x"]) for name in MODALITIES.values()},
        lambda v, query, gallery: jnp.matmul(query, gallery.T, precision="highest"),
    )
    split = RetrievalSplit("test", items, {"class": same_id(*labels)})
    evaluate = retrieval.make_evaluator(
        task, split, {"full_map": True, "batch_size": 64}, lambda x: x, parallel.make_mesh()
    )
    return {n.split("/")[1]: v for n, v in evaluate({}).metrics.items() if n.endswith("/map")}


@pytest.mark.golden("center_loss", "map_eval")
def test_mean_average_precision(golden: Path):
    arrays = load_golden(golden)
    labels = arrays["labels"]
    found = {}
    for first, second in (
        ("Image", "Image"), ("Point", "Point"), ("Mesh", "Mesh"),
        ("Image", "Point"), ("Image", "Mesh"), ("Mesh", "Point"),
    ):  # fmt: skip
        a, b = MODALITIES[first], MODALITIES[second]
        values = retrieve((a, arrays[f"{a}_feat"]), (b, arrays[f"{b}_feat"]), (labels, labels))
        found[f"{first}2{second}"] = values[f"{a[0]}2{b[0]}"]
        found[f"{second}2{first}"] = values[f"{b[0]}2{a[0]}"]
    expected = weights(arrays, "map/")
    assert found.keys() == expected.keys()
    tolerance = 1e-6 if arrays["min_dist_gap"] > 2e-6 else 2e-3
    for name, value in expected.items():
        assert found[name] == pytest.approx(float(value), abs=tolerance), name
    half = len(labels) // 2
    for name, value in weights(arrays, "map_rect/").items():
        first, second = name.removesuffix("_query_first_half").split("2")
        a, b = MODALITIES[first], MODALITIES[second]
        galleries = (a, arrays[f"{a}_feat"][:half]), (b, arrays[f"{b}_feat"])
        values = retrieve(*galleries, (labels[:half], labels))
        assert values[f"{a[0]}2{b[0]}"] == pytest.approx(float(value), abs=tolerance)


def test_every_golden_file_is_claimed():
    marks = [m for f in globals().values() for m in getattr(f, "pytestmark", ())]
    prefixes = tuple(p for m in marks if m.name == "golden" for p in m.args[1:])
    files = golden_cases("center_loss", "")
    assert files and [f.name for f in files if not f.name.startswith(prefixes)] == []
