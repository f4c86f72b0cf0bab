"""Whole training steps of the systems at the sizes of their demos: augmented batch to new state.

The GCN text path is not among them: its graphs need jraph.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np
import optax
from jax import numpy as jnp

from benchmarks.suite import main
from benchmarks.timing import Case, Scale
from jcmr.core import parallel
from jcmr.core.work import bytes_of, count_work
from jcmr.models import center3d, gpldan, imram, pcme, vse
from jcmr.train.state import init_state, make_train_step

SCENES = {"image": "compact", "vocab_size": 200, "word_dim": 64}
SYSTEMS: Mapping[str, tuple[Any, dict[str, Any]]] = {
    "PCME": (pcme, {**SCENES, "embed_dim": 128, "num_samples": 4}),
    "likelihood": (
        pcme,
        {
            **SCENES,
            "embed_dim": 128,
            "method": "likelihood",
            "score": "likelihood",
            "spherical": True,
        },
    ),
    "IMRAM, K=3": (imram, {**SCENES, "embed_dim": 64, "chunk": 16, "reduction": "mean"}),
    "GPLDAN": (gpldan, {**SCENES, "text": "words", "embed_dim": 128}),
    "PVSE": (gpldan, {**SCENES, "text": "words", "embed_dim": 128, "method": "pvse"}),
    "VSE-infinity": (
        vse,
        {"vocab_size": 200, "embed_dim": 1024},
    ),
    "center loss": (
        center3d,
        {
            "modalities": ("image", "points"),
            "num_classes": 12,
            "features": 128,
            "hidden": 64,
            "image": "compact",
            "k": 10,
            "point_embed_dim": 128,
            "point_widths": (32, 32, 64, 64),
        },
    ),
}
"""Name -> (module, config.model)."""
FULL = {
    "PCME, ResNet-152": (
        pcme,
        {"image": "resnet152", "vocab_size": 10_000, "dtype": "bfloat16"},
    ),
    "IMRAM, K=3, 36 regions": (imram, {"vocab_size": 10_000, "score_dtype": "bfloat16"}),
}
"""The same at the sizes of the papers."""


def make_batch(name: str, cfg: Mapping[str, Any], size: int, pixels: int) -> dict[str, np.ndarray]:
    """Random items of the kinds that the system reads."""
    rng = np.random.default_rng(0)
    words = max(cfg.get("vocab_size", 0), 4)
    lengths = rng.integers(6, 15, size)[:, None]
    batch = {
        "id": np.arange(size, dtype=np.int32),
        "text": np.where(np.arange(14) < lengths, rng.integers(3, words, (size, 14)), 0).astype(
            "i"
        ),
    }
    if cfg.get("image", "regions") == "regions":
        batch["regions"] = rng.standard_normal((size, 36, 2048)).astype(np.float32)
    else:
        batch["image"] = rng.integers(0, 256, (size, pixels, pixels, 3), np.uint8)
    if name == "center loss":
        batch["image"] = batch["image"][:, None].repeat(2, axis=1)
        batch["points"] = rng.standard_normal((size, 256, 3)).astype(np.float32)
        batch["label"] = rng.integers(0, cfg["num_classes"], size).astype(np.int32)
    return batch


def centred(batch: Mapping[str, Any], key: Any, axis: str | None) -> Mapping[str, Any]:
    """Pixels from -1 to 1, in place of the augmentation that `benchmarks.input` measures."""
    del key, axis
    if "image" not in batch:
        return batch
    return {**batch, "image": batch["image"].astype(jnp.float32) / 127.5 - 1}


def make_case(name: str, module: Any, cfg: dict[str, Any], size: int, pixels: int) -> Case:
    """One step on one device, compiled."""
    task, batch = module.make(cfg), make_batch(name, cfg, size, pixels)
    variables = jax.jit(task.init)(jax.random.key(0), centred(batch, None, None))
    optimizer = optax.adam(1e-3)
    mesh = parallel.make_mesh(jax.devices()[:1])
    state = parallel.replicate(init_state(variables, optimizer, jax.random.key(1)), mesh)
    body = make_train_step(task, optimizer, centred)
    step: Any = parallel.data_parallel(body, mesh, "shard_map", donate=False)
    placed = parallel.put_batch(batch, mesh, "shard_map")
    compiled = step.lower(state, placed).compile()
    flops = count_work(step, state, placed).flops
    return Case(
        f"training step, {name}",
        f"B={size}",
        lambda: compiled(state, placed),
        flops=flops,
        bytes=float(bytes_of(placed) + 2 * sum(x.nbytes for x in jax.tree.leaves(state.opt_state))),
        temp_bytes=compiled.memory_analysis().temp_size_in_bytes,
        examples=size,
        dtype=cfg.get("dtype", cfg.get("score_dtype", "float32")),
        notes={"MFLOP an example": flops / size / 1e6},
    )


def cases(scale: Scale) -> Iterator[Case]:
    """One for each system."""
    size = {"dry": 4, "cpu": 64, "gpu": 128}[scale]
    for name, (module, cfg) in (FULL if scale == "gpu" else SYSTEMS).items():
        yield make_case(name, module, cfg, size, 224 if scale == "gpu" else 48)


if __name__ == "__main__":
    main("train_step")
