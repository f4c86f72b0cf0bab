"""Pictures of cross-attention, and the attention that they show."""

import jax
import numpy as np
from jax import numpy as jnp

from jcmr.core.types import RetrievalSplit, Task
from jcmr.data.records import Arrays
from jcmr.eval import attention_report
from jcmr.eval.retrieval import Results
from jcmr.models import imram

WORDS = {"<pad>": 0, "<start>": 1, "<end>": 2, "<unk>": 3, "dog": 4}


def test_attention_is_a_distribution_over_regions():
    rng = np.random.default_rng(0)
    batch = {
        "regions": rng.normal(size=(3, 4, 6)).astype(np.float32),
        "text": np.asarray([[1, 4, 2, 0], [1, 4, 4, 2], [1, 2, 0, 0]], np.int32),
    }
    for variant in ("text", "image"):
        cfg = {"vocab_size": 5, "word_dim": 3, "embed_dim": 4, "steps": 2, "variant": variant}
        task, attention = imram.make(cfg), imram.make_attention(cfg)
        shapes = jax.eval_shape(task.init, jax.random.key(0), batch)
        variables = jax.tree.map(lambda x: rng.normal(size=x.shape).astype(np.float32), shapes)

        @jax.jit
        def run(variables, task=task, attention=attention):
            parts = (task.encode[name](variables, batch) for name in ("image", "text"))
            return attention(variables, *parts)

        found = np.asarray(run(variables))
        assert found.shape == (3, 2, 4, 4)
        real = np.broadcast_to((batch["text"] > 0)[:, None], found.shape[:3])
        np.testing.assert_allclose(found.sum(-1)[real], 1.0, atol=1e-5)
        assert (found >= 0).all()


def draw(folder, num_regions, pixels=True):
    images = {"image" if pixels else "regions": np.zeros((2, 8, 8, 3), np.uint8)}
    split = RetrievalSplit(
        "test",
        {"image": Arrays(images), "text": Arrays({"text": np.asarray([[1, 4, 2, 0]] * 4)})},
        {},
    )
    top = {"t2i": np.asarray([[1, 0]] * 4)}
    results = Results({}, top, {"t2i": top["t2i"] == 1}, {}, {}, {}, {}, {})
    encode = {name: lambda variables, inputs: inputs for name in ("image", "text")}
    task = Task(None, None, encode, None)  # pyright: ignore

    def attention(variables, image, text):
        return jnp.full((len(text["text"]), 2, 4, num_regions), 1 / num_regions)

    rest = split, results, lambda batch: batch, WORDS
    return attention_report.draw(folder, task, attention, {}, *rest, num_pairs=2)


def test_pairs_are_drawn_where_there_are_pixels_and_a_grid(tmp_path):
    assert draw(tmp_path / "grid", 4)
    names = {path.name for path in (tmp_path / "grid").glob("*.png")}
    assert names == {"attention_0.png", "attention_1.png"}
    assert not draw(tmp_path / "boxes", 5)
    assert not draw(tmp_path / "features", 4, pixels=False)
    assert not list(tmp_path.glob("*/*.png"))[2:]
