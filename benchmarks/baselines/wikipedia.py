"""Classical cross-modal retrieval on paired features, with scikit-learn.

CCA, semantic matching (SM: logistic class posteriors of each modality; Rasiwasia et al., MM 2010),
SM after CCA (SCM), ridge regression to one-hot classes, and chi-squared SVMs for images. Settings
are picked by five-fold cross-validation on the training pairs, then one fit is scored once on test.
"""

import collections
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from jcmr.train.linear_start import cca

Project = Callable[[np.ndarray], np.ndarray]


class Data(NamedTuple):
    """Paired features and class ids of one split."""

    image: np.ndarray
    text: np.ndarray
    label: np.ndarray

    def take(self, rows: np.ndarray) -> "Data":
        """Some of the pairs."""
        return Data(*(x[rows] for x in self))


def unit(x: np.ndarray) -> np.ndarray:
    """Rows at unit length."""
    return x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)


def centred(x: np.ndarray) -> np.ndarray:
    """Rows less their means."""
    return x - x.mean(axis=1, keepdims=True)


SIMILARITIES: Mapping[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "cosine": lambda a, b: unit(a) @ unit(b).T,
    "correlation": lambda a, b: unit(centred(a)) @ unit(centred(b)).T,
    "dot": lambda a, b: a @ b.T,
}


def mean_ap(scores: np.ndarray, query: np.ndarray, gallery: np.ndarray) -> float:
    """Class mAP over the whole ranking of scores [n, m]; ties in gallery order."""
    hits = gallery[np.argsort(-scores, axis=1, kind="stable")] == query[:, None]
    precision = np.cumsum(hits, axis=1) / np.arange(1, hits.shape[1] + 1)
    return float(((precision * hits).sum(1) / np.maximum(hits.sum(1), 1)).mean())


def class_map(scores: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Class mAP of both directions and their mean; scores [n, n] of images against texts."""
    found = {
        "i2t/map": mean_ap(scores, labels, labels),
        "t2i/map": mean_ap(scores.T, labels, labels),
    }
    return found | {"map": sum(found.values()) / 2}


def cca_pair(x: np.ndarray, y: np.ndarray, dim: int, reg: float) -> tuple[Project, Project]:
    """Projections of both sides onto their canonical directions."""
    mean_x, mean_y = x.mean(0), y.mean(0)
    a, b, _ = cca(x - mean_x, y - mean_y, dim, reg, reg)
    return lambda z: (z - mean_x) @ a, lambda z: (z - mean_y) @ b


def ridge(x: np.ndarray, labels: np.ndarray, strength: float) -> Project:
    """Least squares to one-hot classes; the ridge is relative to the mean variance."""
    targets = np.eye(labels.max() + 1)[labels]
    mean = x.mean(0)
    gram = (x - mean).T @ (x - mean)
    gram[np.diag_indices(len(gram))] += strength * np.trace(gram) / len(gram)
    weights = np.linalg.solve(gram, (x - mean).T @ (targets - targets.mean(0)))
    return lambda z: (z - mean) @ weights


def posteriors(x: np.ndarray, labels: np.ndarray, c: float) -> Project:
    """Class posteriors of logistic regression on standardised features."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    scaler = StandardScaler().fit(x)
    model = LogisticRegression(C=c, max_iter=200).fit(scaler.transform(x), labels)
    return lambda z: model.predict_proba(scaler.transform(z))


def chi2_svm(x: np.ndarray, labels: np.ndarray, c: float) -> Project:
    """Class posteriors of a support vector machine with the exponential chi-squared kernel."""
    from sklearn.calibration import CalibratedClassifierCV
    from sklearn.metrics.pairwise import additive_chi2_kernel
    from sklearn.svm import SVC

    distance = -additive_chi2_kernel(x, x)
    gamma = 1 / distance.mean()
    machine = SVC(C=c, kernel="precomputed")
    options: Any = {"ensemble": False, "cv": 3}
    model = CalibratedClassifierCV(machine, **options).fit(np.exp(-gamma * distance), labels)
    return lambda z: model.predict_proba(np.exp(gamma * additive_chi2_kernel(z, x)))


def fit(method: str, data: Data, p: Mapping[str, float]) -> tuple[Project, Project]:
    """Projections of images and of texts."""
    x, y, labels = data
    if method == "CCA":
        return cca_pair(x, y, int(p["dim"]), p["reg"])
    if method == "SCM":
        f, g = cca_pair(x, y, int(p["dim"]), p["reg"])
        a, b = posteriors(f(x), labels, p["c"]), posteriors(g(y), labels, p["c"])
        return lambda z: a(f(z)), lambda z: b(g(z))
    if method == "chi2-SVM":
        return chi2_svm(x, labels, p["svm"]), posteriors(y, labels, p["c"])
    make, key = (ridge, "strength") if method == "ridge" else (posteriors, "c")
    return make(x, labels, p[key]), make(y, labels, p[key])


def folds(labels: np.ndarray, num: int = 5) -> list[tuple[np.ndarray, np.ndarray]]:
    """Stratified (training, held out) rows."""
    from sklearn.model_selection import StratifiedKFold

    split = StratifiedKFold(num, shuffle=True, random_state=0).split(labels, labels)
    return [(train, held) for train, held in split]


def evaluate(
    method: str,
    grid: Sequence[Mapping[str, float]],
    similarities: Sequence[str],
    train: Data,
    test: Data,
) -> dict[str, Any]:
    """Picks settings and similarity on folds of `train`, then fits all of it and scores `test`."""
    total: dict[tuple[int, str], float] = collections.defaultdict(float)
    parts = folds(train.label)
    for kept, held in parts:
        dev = train.take(held)
        for i, p in enumerate(grid):
            image, text = fit(method, train.take(kept), p)
            a, b = image(dev.image), text(dev.text)
            for name in similarities:
                scores = SIMILARITIES[name](a, b)
                total[i, name] += class_map(scores, dev.label)["map"] / len(parts)
    i, name = max(total, key=lambda key: total[key])
    image, text = fit(method, train, grid[i])
    scores = SIMILARITIES[name](image(test.image), text(test.text))
    metrics = class_map(scores, test.label)
    return {"metrics": metrics | {"cv": total[i, name]}, "settings": {**grid[i], "by": name}}
