"""Frozen features of paired images and texts, with class labels: Wikipedia, Pascal, NUS-WIDE.

One .npz or .mat file, in which `<name>_train` and `<name>_test` (optionally `<name>_dev`) are
arrays whose rows belong together:

  image_*   float [n, p]
  text_*    float [n, v] weights of words or topics, or [n, v, f]; any name, config.data.text says
            which (`tfidf`, `lda`; several are set side by side)
  labels_*  int [n] class ids, any integers; or one-hot [n, c]; needed where labels are used
  words     optional, names of the v words

Unsupervised runs never see a label: training examples only hold one where
`config.data.supervision` is "supervised". Evaluation takes the labels of its split alone.
"""

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from absl import logging

from jcmr.core.types import RetrievalSplit, same_id
from jcmr.data.options import unpack
from jcmr.data.records import Arrays

SUPERVISION = ("supervised", "unsupervised")


class FeatureOptions(NamedTuple):
    """The data section of a config for this source."""

    file: str = ""
    image: tuple[str, ...] = ("image",)
    """Names of the arrays that make an image's features, side by side."""
    text: tuple[str, ...] = ("text",)
    image_transform: str = ""
    """"sqrt" (of histograms), "standard" (mean 0, deviation 1 in training), "chi2" (the explicit
    map of the additive chi-squared kernel), or "" for none."""
    text_transform: str = ""
    supervision: str = "unsupervised"
    dev_rate: float = 0.2
    """Share of the training pairs that are held out as the dev split; 0 trains on all, and the dev
    split is then the training pairs, under their own name."""
    dev_seed: int = 0
    dev_fold: int = 0
    """Which of the 1 / dev_rate folds is held out."""


def read_file(path: Path) -> Mapping[str, Any]:
    """The arrays of an .npz or .mat file.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: it cannot be read, or would run code.
    """
    if not path.is_file():
        raise FileNotFoundError(
            f"There is no {path}. This source reads one .npz or .mat file with image_train, "
            f"text_train, labels_train and the same of test; set config.data.file."
        )
    try:
        if path.suffix == ".mat":
            from scipy.io import loadmat

            return {n: x for n, x in loadmat(str(path)).items() if not n.startswith("__")}
        with path.open("rb") as opened, np.load(opened, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except Exception as error:  # damaged archives fail in many ways
        raise ValueError(
            f"{path} ({path.stat().st_size} bytes) is no whole .npz or .mat file of plain arrays "
            f"({error}); copy it again."
        ) from error


def pick(arrays: Mapping[str, Any], name: str, path: Path) -> np.ndarray:
    """One array of the file.

    Raises:
      ValueError: it is not there.
    """
    if name not in arrays:
        raise ValueError(f"{path} has no array {name!r}; it has {', '.join(sorted(arrays))}.")
    return np.asarray(arrays[name])


def check_features(x: np.ndarray, name: str, path: Path) -> np.ndarray:
    """Features as float32 [n, ...]; zero rows and repeated rows are counted in a warning.

    Raises:
      ValueError: not numbers, no rows, or a value is not finite.
    """
    if x.ndim < 2 or not len(x) or not np.issubdtype(x.dtype, np.number):
        raise ValueError(
            f"{path}, {name}: expected float features [n, p], found {x.dtype} {x.shape}."
        )
    x = x.astype(np.float32)
    flat = x.reshape(len(x), -1)
    bad = np.flatnonzero(~np.isfinite(flat).all(axis=1))
    if len(bad):
        raise ValueError(
            f"{path}, {name}: {len(bad)} rows hold NaN or infinite values, the first is row "
            f"{bad[0]}. Remove those pairs, or put 0 where a feature is missing."
        )
    zero = np.flatnonzero(~flat.any(axis=1))
    if len(zero):
        logging.warning(
            "%s, %s: %d rows are all zero (the first is row %d); they are kept and say nothing.",
            path, name, len(zero), zero[0],
        )  # fmt: skip
    repeated = len(flat) - len(np.unique(flat, axis=0))
    if repeated > len(zero):
        logging.warning("%s, %s: %d rows repeat another.", path, name, repeated)
    return x


def class_ids(labels: np.ndarray, name: str, path: Path) -> np.ndarray:
    """Class ids [n] of integers [n], [n, 1], or one-hot [n, c].

    Raises:
      ValueError: they are neither.
    """
    labels = np.asarray(labels)
    if labels.ndim == 2 and labels.shape[1] > 1:
        if not ((labels == 0) | (labels == 1)).all() or not (labels.sum(axis=1) == 1).all():
            raise ValueError(
                f"{path}, {name}: rows of {labels.shape} are not one-hot; items of several classes "
                f"are not supported."
            )
        return labels.argmax(axis=1)
    labels = labels.reshape(-1)
    if not np.array_equal(labels, labels.astype(np.int64)):
        raise ValueError(f"{path}, {name}: class ids must be whole numbers.")
    return labels.astype(np.int64)


Transform = Callable[[np.ndarray], np.ndarray]


def chi2_map(x: np.ndarray) -> np.ndarray:
    """Features whose dot product is nearly the additive chi-squared kernel sum 2 x y / (x + y).

    Vedaldi and Zisserman (2012), one frequency: [n, p] of numbers >= 0 -> [n, 3 p].
    """
    period = 0.8
    root = np.sqrt(x * period)
    log = np.log(np.where(x > 0, x, 1.0))
    scale = root * np.sqrt(2 / np.cosh(np.pi * period))
    return np.concatenate(
        [root, scale * np.cos(period * log), scale * np.sin(period * log)], axis=1
    )


def make_transform(name: str, train: np.ndarray) -> Transform:
    """The transform `name`, its statistics taken from the training rows alone.

    Raises:
      ValueError: an unknown name, or negative numbers in a histogram.
    """
    if name == "":
        return lambda x: x
    if name == "standard":
        mean, deviation = train.mean(axis=0), train.std(axis=0)
        return lambda x: ((x - mean) / np.where(deviation > 0, deviation, 1)).astype(np.float32)
    if name not in ("sqrt", "chi2"):
        raise ValueError(
            f"A transform in config.data is {name!r}; it can be 'sqrt', 'standard', 'chi2' or ''."
        )
    if (train < 0).any():
        raise ValueError(
            f"The transform {name!r} is for histograms, but the training features hold negative "
            f"numbers; use 'standard' or ''."
        )
    return lambda x: (np.sqrt(x) if name == "sqrt" else chi2_map(x)).astype(np.float32)


class Pairs(Arrays):
    """Training pairs: "features" [p], "text" [v], "id", and "label" in supervised runs."""

    @property
    def text(self) -> np.ndarray:
        """All texts [n, v]."""
        return self.columns["text"]


@dataclasses.dataclass(frozen=True)
class FeatureSource:
    """Paired features in three splits."""

    options: FeatureOptions
    splits: Mapping[str, Mapping[str, np.ndarray]]
    """split -> image, text, and label where the file has it."""
    vocabulary: Mapping[str, int]

    @property
    def info(self) -> dict[str, int]:
        """Sizes a model takes from the data; the number of classes only in supervised runs."""
        train = self.splits["train"]
        sizes = {"feature_dim": train["image"].shape[1], "vocab_size": train["text"].shape[1]}
        if self.options.supervision == "supervised":
            sizes["num_classes"] = int(train["label"].max()) + 1
        return sizes

    @property
    def train(self) -> Pairs:
        """The training pairs."""
        split = self.splits["train"]
        ids = np.arange(len(split["image"]), dtype=np.int32)
        columns = {"features": split["image"], "text": split["text"], "id": ids}
        if self.options.supervision == "supervised":
            columns["label"] = split["label"]
        return Pairs(columns)

    def retrieval(self, split: str) -> RetrievalSplit:
        """The galleries of `split`; of "test-train" the images of test and the texts of train.

        Relations: `own`, the pair, where both sides are one split; `class`, where labels are known.

        Raises:
          ValueError: there is no such split.
        """
        names = split.split("-") if "-" in split else [split, split]
        for name in names:
            if name not in self.splits:
                known = ", ".join(self.splits)
                raise ValueError(
                    f"The features have no split {name!r}; they have {known}, and pairs of them "
                    f"such as test-train (images of test, texts of train)."
                )
        images, texts = (self.splits[name] for name in names)
        ids = [np.arange(len(x), dtype=np.int32) for x in (images["image"], texts["text"])]
        relevance = {"own": same_id(*ids)} if names[0] == names[1] else {}
        if "label" in images and "label" in texts:
            relevance["class"] = same_id(images["label"], texts["label"])
        if images is self.splits["train"] and texts is images:
            split = "train"  # also where it stands in for dev
        items = {
            "image": Arrays({"features": images["image"], "id": ids[0]}),
            "text": Arrays({"text": texts["text"], "id": ids[1]}),
        }
        return RetrievalSplit(split, items, relevance)


def hold_out(num: int, options: FeatureOptions) -> np.ndarray:
    """Which training pairs are the dev split, bool [n]; drawn without looking at labels."""
    if not options.dev_rate:
        return np.zeros(num, bool)
    folds = max(round(1 / options.dev_rate), 1)
    if not 0 <= options.dev_fold < folds:
        raise ValueError(f"config.data.dev_fold is {options.dev_fold}; there are {folds} folds.")
    place = np.random.default_rng(options.dev_seed).permutation(num)
    return place % folds == options.dev_fold


def warn_overlap(train: Mapping[str, np.ndarray], test: Mapping[str, np.ndarray], path: Path):
    """Counts test items whose features are those of a training item."""
    for name in ("image", "text"):
        rows = {row.tobytes() for row in train[name]}
        again = sum(row.tobytes() in rows for row in test[name] if row.any())
        if again:
            logging.warning(
                "%s: %d of %d test items have the %s features of a training item; train and test "
                "overlap.", path, again, len(test[name]), name,
            )  # fmt: skip


def load_split(arrays: Mapping[str, Any], split: str, options: FeatureOptions, path: Path):
    """image, text and, if there, label of one split, rows checked.

    Raises:
      ValueError: arrays are missing or their rows do not fit.
    """
    loaded = {}
    for side in ("image", "text"):
        names = [f"{name}_{split}" for name in getattr(options, side)]
        parts = [check_features(pick(arrays, name, path), name, path) for name in names]
        if len({len(part) for part in parts}) > 1:
            sizes = ", ".join(f"{name} {len(part)}" for name, part in zip(names, parts))
            raise ValueError(f"{path}: rows do not belong together: {sizes}.")
        loaded[side] = np.concatenate(parts, axis=1)
    if f"labels_{split}" in arrays:
        name = f"labels_{split}"
        loaded["label"] = class_ids(arrays[name], name, path)
    sizes = {name: len(x) for name, x in loaded.items()}
    if len(set(sizes.values())) > 1:
        listed = ", ".join(f"{name} {size}" for name, size in sizes.items())
        raise ValueError(f"{path}, {split}: rows do not belong together: {listed}.")
    return loaded


def number_classes(splits: dict[str, dict[str, np.ndarray]], path: Path) -> None:
    """Renumbers the class ids of all splits 0 .. c - 1, whatever gaps they have."""
    labelled = [split["label"] for split in splits.values() if "label" in split]
    if not labelled:
        return
    known = np.unique(np.concatenate(labelled))
    if known[0] != 0 or known[-1] != len(known) - 1:
        logging.info(
            "%s: %d class ids from %d to %d are renumbered.", path, len(known), known[0], known[-1]
        )
    for split in splits.values():
        if "label" in split:
            split["label"] = np.searchsorted(known, split["label"]).astype(np.int32)


def make(cfg: Mapping[str, Any]) -> FeatureSource:
    """Reads `cfg.file`.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: an unknown option, arrays that are missing, damaged or do not fit together, or
        labels that are asked for and not there.
    """
    options = unpack(FeatureOptions, cfg)
    options = options._replace(image=tuple(options.image), text=tuple(options.text))
    if options.supervision not in SUPERVISION:
        raise ValueError(
            f"config.data.supervision is {options.supervision!r}; it can be "
            f"{' or '.join(SUPERVISION)}."
        )
    path = Path(options.file)
    arrays = read_file(path)
    names = ["train", "test", *(["dev"] if f"{options.image[0]}_dev" in arrays else [])]
    splits = {name: load_split(arrays, name, options, path) for name in names}
    if options.supervision == "supervised" and "label" not in splits["train"]:
        raise ValueError(
            f"config.data.supervision is 'supervised', but {path} has no labels_train."
        )
    warn_overlap(splits["train"], splits["test"], path)
    number_classes(splits, path)
    if "dev" not in splits:
        held, whole = hold_out(len(splits["train"]["image"]), options), splits["train"]
        splits["train"] = {n: x[~held] for n, x in whole.items()}
        if held.any():
            splits["dev"] = {n: x[held] for n, x in whole.items()}
    for side in ("image", "text"):
        change = make_transform(getattr(options, f"{side}_transform"), splits["train"][side])
        for split in splits.values():
            split[side] = change(split[side])
    splits.setdefault("dev", splits["train"])
    words = [str(word) for word in np.asarray(arrays.get("words", [])).reshape(-1)]
    vocabulary = {word: index for index, word in enumerate(words)}
    return FeatureSource(options, splits, vocabulary)
