"""Plain linear CCA on frozen features: mean region against LSA of tf-idf captions.

python -m benchmarks.baselines.cca --config=configs/pcme_flickr8k.py --workdir=runs/cca

Takes the command line of jcmr.launch and reads the same files, with the settings that a search on
the development split of the Flickr8k subset gave a plain CCA; writes the same metrics to
results.json. Needs scikit-learn (the extra "dev").
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from absl import app, flags
from jax import numpy as jnp
from ml_collections import config_flags
from sklearn.decomposition import TruncatedSVD
from sklearn.feature_extraction.text import TfidfVectorizer

from jcmr.data.sources import precomp
from jcmr.eval import metrics
from jcmr.ops import ranks
from jcmr.train.linear_start import cca
from jcmr.train.logging import write_json

TOPICS = DIM = 200
REG_IMAGE, REG_TEXT = 3.0, 0.3
RECALLS = (1, 5, 10)

CONFIG = config_flags.DEFINE_config_file("config", None, "Whose data and seed to take.")
WORKDIR = flags.DEFINE_string("workdir", "runs/cca", "Where results.json goes.")


def recalls(scores: np.ndarray, positive: np.ndarray) -> metrics.Values:
    """R@k in percent of scores [n, m], where bool `positive` [n, m] says what matches."""
    s, match = jnp.asarray(scores), jnp.asarray(positive)
    ahead = ranks.count_ahead(s, ~match, ranks.best_positive(s, match))
    return metrics.recall_values(np.asarray(ahead), RECALLS)


def measure(data: Mapping[str, Any], seed: int) -> metrics.Values:
    """Fits on the training split and scores dev and test: `<split>/<direction>/r@k`, `rsum`.

    Every caption is a pair of its own with its image; the text model sees an image's captions as
    one document. Cosine of the canonical variables, weighted by their correlations.
    """
    splits = {
        name: precomp.read_split(Path(data["dir"]), name, data.get("captions_per_image", 5))
        for name in ("train", "dev", "test")
    }
    images = {name: s.images.array.mean(axis=1, dtype=np.float64) for name, s in splits.items()}
    train = splits["train"]
    documents = [""] * len(train.images)
    for index, caption in zip(train.owner, train.captions, strict=True):
        documents[index] += " " + caption
    words = TfidfVectorizer(min_df=3, stop_words="english", sublinear_tf=True)
    topics = TruncatedSVD(TOPICS, random_state=seed).fit(words.fit_transform(documents))
    texts = {name: topics.transform(words.transform(s.captions)) for name, s in splits.items()}
    x, y = images["train"][train.owner], texts["train"]
    mean_x, mean_y = x.mean(axis=0), y.mean(axis=0)
    a, b, correlation = cca(x - mean_x, y - mean_y, DIM, REG_IMAGE, REG_TEXT)

    def unit(z: np.ndarray) -> np.ndarray:
        return z / np.maximum(np.linalg.norm(z, axis=1, keepdims=True), 1e-12)

    values = {}
    for name in ("dev", "test"):
        image = unit((images[name] - mean_x) @ (a * correlation))
        text = unit((texts[name] - mean_y) @ (b * correlation))
        scores = image @ text.T
        positive = splits[name].owner == np.arange(len(image))[:, None]
        both = {"i2t": recalls(scores, positive), "t2i": recalls(scores.T, positive.T)}
        for direction, found in both.items():
            values |= {f"{name}/{direction}/{metric}": v for metric, v in found.items()}
        values[f"{name}/rsum"] = metrics.rsum(*both.values())
    return values


def main(argv: list[str]) -> None:
    """Measures, and writes results.json."""
    del argv
    config: Any = CONFIG.value
    values = measure(config.data, config.seed)
    workdir = Path(WORKDIR.value)
    workdir.mkdir(parents=True, exist_ok=True)
    write_json(workdir / "results.json", values)
    print(f"linear CCA: test RSUM {values['test/rsum']:.1f}, dev RSUM {values['dev/rsum']:.1f}")


if __name__ == "__main__":
    flags.mark_flag_as_required("config")
    app.run(main)
