"""A run for processes without jcmr: StableHLO, weights, and a short manifest.

    weights = safetensors.numpy.load_file("variables.safetensors")
    encode = jax.export.deserialize(open("encode_text.stablehlo", "rb").read())
    texts = encode.call(weights, {"text": ids, "id": zeros})      # {name: array}
    score = jax.export.deserialize(open("score_image_text.stablehlo", "rb").read())
    scores = score.call(weights, images, texts)                   # [q, g]

Batches of any size: the leading axes are symbolic. Inputs are what a run stores of an item, for
instance uint8 pixels; cropping and normalising are part of the program.
"""

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
from flax import traverse_util
from jax import export

import jcmr
from jcmr.core.types import Array, Embedding
from jcmr.core.weights import FILE, save_weights
from jcmr.data import augment
from jcmr.data.text import save_vocabulary
from jcmr.serve.items import shapes_of
from jcmr.serve.load import VOCABULARY, Run, pairs_of, task_of

PLATFORMS = ("cpu", "cuda", "tpu")
Named = dict[str, Array]


def named(embedding: Embedding) -> Named:
    """The leaves of an embedding by name, "embedding" where it is one array."""
    leaves = jax.tree_util.tree_leaves_with_path(embedding)
    names = [jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in leaves]
    return {name or "embedding": leaf for name, (_, leaf) in zip(names, leaves)}


def spec_of(arrays: Mapping[str, Any]) -> dict[str, list]:
    """Dtype and shape of each array, as JSON."""
    return {name: [str(x.dtype), *map(str, x.shape)] for name, x in arrays.items()}


def export_run(run: Run, folder: Path) -> dict[str, Any]:
    """Writes the encoders and scores of a run into a folder, whole or not at all.

    Returns:
      The manifest: files, and the inputs and outputs of each program.

    Raises:
      FileExistsError: the folder is there already.
    """
    if folder.exists():
        raise FileExistsError(f"{folder} exists; delete it, or choose another --workdir.")
    config = run.config.copy_and_resolve_references()
    if "chunk" in config.model:
        config.model.chunk = 1  # a number of items that is not known cannot be cut into others
    task, prepare = task_of(config), augment.make_prepare(config.data)
    weights = traverse_util.flatten_dict(dict(run.variables), sep="/")
    weight_shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), weights)
    part = folder.with_name(folder.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)

    def write(name: str, function: Any, *shapes: Any) -> tuple[str, Any]:
        made = export.export(jax.jit(function), platforms=PLATFORMS)(weight_shapes, *shapes)
        (part / f"{name}.stablehlo").write_bytes(made.serialize())
        return f"{name}.stablehlo", jax.tree.unflatten(made.out_tree, made.out_avals)

    embeddings: dict[str, Any] = {}
    manifest: dict[str, Any] = {
        "system": run.config.task,
        "version": jcmr.__version__,
        "fingerprint": run.fingerprint,
        "step": run.step,
        "weights": FILE,
        "platforms": PLATFORMS,
        "encode": {},
        "score": [],
    }
    for modality, encode in task.encode.items():
        inputs = any_size(shapes_of(run, modality, 1), *export.symbolic_shape("b"))

        def encode_named(weights: Named, batch: Named, encode=encode) -> Named:
            variables = traverse_util.unflatten_dict(weights, sep="/")
            return named(encode(variables, prepare(batch)))

        file, outputs = write(f"encode_{modality}", encode_named, inputs)
        prepared = jax.eval_shape(prepare, shapes_of(run, modality, 1))
        embeddings[modality] = jax.eval_shape(encode, run.variables, prepared)
        entry = {"file": file, "inputs": spec_of(inputs), "outputs": spec_of(outputs)}
        manifest["encode"][modality] = entry
    modalities = list(task.encode)
    for first, second in pairs_of(run):
        if modalities.index(first) > modalities.index(second):
            continue
        query, gallery = export.symbolic_shape("q, g")
        sides = (
            any_size(named(embeddings[first]), query),
            any_size(named(embeddings[second]), gallery),
        )

        def score_named(weights: Named, query: Named, gallery: Named, first=first, second=second):
            variables = traverse_util.unflatten_dict(weights, sep="/")
            both = rebuilt(query, embeddings[first]), rebuilt(gallery, embeddings[second])
            return task.score(variables, *both)

        file, _ = write(f"score_{first}_{second}", score_named, *sides)
        manifest["score"].append({"file": file, "query": first, "gallery": second})
    save_weights(part / FILE, run.variables)
    if run.vocabulary:
        save_vocabulary(part / VOCABULARY, run.vocabulary)
    (part / "manifest.json").write_text(json.dumps(manifest, indent=2) + "\n")
    os.replace(part, folder)
    return manifest


def any_size(shapes: Mapping[str, Any], size: Any) -> dict[str, Any]:
    """Shapes [1, ...] with another leading size."""
    return {name: jax.ShapeDtypeStruct((size, *x.shape[1:]), x.dtype) for name, x in shapes.items()}


def rebuilt(arrays: Named, like: Embedding) -> Embedding:
    """An embedding of named arrays."""
    leaves = [arrays[name] for name in named(like)]
    return jax.tree.unflatten(jax.tree.structure(like), leaves)
