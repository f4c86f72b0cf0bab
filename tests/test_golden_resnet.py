"""ResNet against torchvision: a block with all gradients, and whole networks from a recipe."""

import json
from pathlib import Path

import jax
import numpy as np
import pytest
from flax import traverse_util

from jcmr.convert import rules
from jcmr.convert.resnet import block_rules, convert_resnet
from jcmr.models.encoders.resnet import BasicBlock, Bottleneck, ResNet
from tests.conftest import load_golden


def assert_close(actual, expected, tolerance):
    """Largest difference, as a share of the largest expected value."""
    scale = np.abs(expected).max()
    np.testing.assert_allclose(actual, expected, rtol=0, atol=tolerance * max(scale, 1e-30))


def nhwc(x):
    return np.transpose(x, (0, 2, 3, 1))


def weights(arrays, prefix):
    return {n.removeprefix(prefix): x for n, x in arrays.items() if n.startswith(prefix)}


def block_of(state):
    num_convs = 3 if "conv3.weight" in state else 2
    block = {2: BasicBlock, 3: Bottleneck}[num_convs]
    return block, block_rules((), "", num_convs, "downsample.0.weight" in state)


@pytest.mark.golden("dxr", "resnet_b")
def test_block(golden: Path):
    check_block(load_golden(golden))


def check_block(arrays):
    """Outputs, gradients and new statistics of a residual block, in both modes."""
    state = weights(arrays, "w/")
    block, mapping = block_of(state)
    module = block(state["conv1.weight"].shape[0], int(arrays["stride"]))
    variables = rules.convert(mapping, state)
    x, cotangent = nhwc(arrays["x"]), nhwc(arrays["cot0"])
    params_only = {path: rule for path, rule in mapping.items() if path[0] == "params"}
    for mode in ("eval", "train"):

        def run(params, x, train=mode == "train"):
            out, new = module.apply(
                {**variables, "params": params}, x, train, mutable=["batch_stats"]
            )
            return (out * cotangent).sum(), (out, new["batch_stats"])

        grads, (out, new) = jax.grad(run, (0, 1), has_aux=True)(variables["params"], x)
        assert_close(out, nhwc(arrays[f"{mode}/out0"]), 1e-5)
        assert_close(grads[1], nhwc(arrays[f"{mode}/grad_in0"]), 1e-4)
        expected = rules.convert(params_only, weights(arrays, f"{mode}/grad_w/"))["params"]
        jax.tree.map(lambda a, e: assert_close(a, e, 1e-4), grads[0], expected)
        if mode == "train":
            merged = {**state, **weights(arrays, "train/new/")}
            expected = rules.convert(mapping, merged)["batch_stats"]
        else:
            expected = variables["batch_stats"]
        jax.tree.map(lambda a, e: assert_close(a, e, 1e-5), new, expected)


def recipe_state(arrays, shapes):
    """The weights that the manifest prescribes, from a seed and the order of names."""
    state = {}
    for i, name in enumerate(arrays["names"]):
        shape = tuple(shapes[str(name)])
        q = np.random.RandomState(int(arrays["recipe_seed"]) + i)
        if name.endswith("num_batches_tracked"):
            continue
        if name.endswith("running_var"):
            x = q.uniform(0.5, 1.5, shape)
        elif name.endswith("running_mean"):
            x = 0.1 * q.randn(*shape)
        elif name.endswith(("weight_alpha", "weight_beta")):
            x = q.uniform(0, np.pi if name.endswith("alpha") else 2 * np.pi, shape)
        elif len(shape) == 1 and name.endswith("weight"):
            x = q.uniform(0.5, 1.5, shape)
        elif len(shape) == 1:
            x = 0.1 * q.randn(*shape)
        else:
            x = np.sqrt(2 / np.prod(shape[1:])) * q.randn(*shape)
        state[str(name)] = x.astype(np.float32)
    return state


@pytest.mark.golden("dxr", "resnet1", "resnet3", "resnet5")
def test_network(golden: Path):
    arrays = load_golden(golden)
    arch = golden.stem.split("_")[0]
    shapes = json.loads((golden.parent / "recipe_shapes.json").read_text())[arch]
    state = recipe_state(arrays, shapes)
    for name, checksum in zip(arrays["checksum_names"], arrays["checksums"]):
        assert state[str(name)].astype(np.float64).sum() == pytest.approx(
            checksum, rel=1e-9, abs=1e-9
        )
    depth = int(arch.removeprefix("resnet"))
    variables = convert_resnet(state, depth)
    feature_map, stages = jax.jit(ResNet(depth).apply)(variables, nhwc(arrays["x"]))
    pooled = feature_map.mean((1, 2))
    tokens = feature_map.reshape(len(feature_map), -1, feature_map.shape[-1])
    stride = feature_map.shape[-1] // arrays["tokens_nhwc"].shape[-1]
    assert_close(feature_map, nhwc(arrays["feature_map"]), 5e-5)
    assert_close(pooled, arrays["pooled"], 5e-5)
    assert_close(tokens[..., ::stride], arrays["tokens_nhwc"], 5e-5)
    assert_close(pooled @ state["fc.weight"].T + state["fc.bias"], arrays["logits"], 5e-5)
    for name, stage in zip(["stem", "layer1", "layer2", "layer3", "layer4"], stages):
        x = np.transpose(np.asarray(stage, np.float64), (0, 3, 1, 2))
        allowed = 1e-4 * np.sqrt(arrays[f"{name}/sum_sq"] * x.size)
        assert x.shape == tuple(arrays[f"{name}/shape"])
        assert abs(x.sum() - arrays[f"{name}/sum"]) < allowed
        assert (x**2).sum() == pytest.approx(arrays[f"{name}/sum_sq"], rel=1e-4)
        assert np.abs(x).max() == pytest.approx(arrays[f"{name}/abs_max"], rel=1e-4)
        assert_close(x[0, :8, 0, :], arrays[f"{name}/slice"], 1e-4)


def test_statistics_are_those_of_the_global_batch():
    """8 devices give the activations, gradients and running statistics of one."""
    from jcmr.core import parallel

    rng = np.random.default_rng(0)
    x = rng.normal(size=(16, 6, 6, 4)).astype(np.float32)
    module = BasicBlock(8, 2)
    variables = module.init(jax.random.key(0), x)
    cotangent = rng.normal(size=(16, 3, 3, 8)).astype(np.float32)

    def step(variables, batch, axis):
        def share(params):
            out, new = module.apply(
                {**variables, "params": params}, batch["x"], True, axis, mutable=["batch_stats"]
            )
            return (out * batch["c"]).sum(), new

        grads, new = jax.grad(share, has_aux=True)(parallel.varying(variables["params"], axis))
        return parallel.psum(grads, axis), parallel.pmean(new["batch_stats"], axis)

    one = step(variables, {"x": x, "c": cotangent}, None)
    mesh = parallel.make_mesh()
    for how in ("pmap", "shard_map"):
        batch = parallel.put_batch({"x": x, "c": cotangent}, mesh, how)
        many = parallel.data_parallel(step, mesh, how, donate=False)(variables, batch)
        jax.tree.map(lambda a, e: np.testing.assert_allclose(a, e, atol=2e-4, rtol=2e-4), many, one)
    assert traverse_util.flatten_dict(one[1])
