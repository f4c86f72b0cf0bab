"""Approximate search on CPU: FAISS behind the protocol of `exact.Search`; the only file with it."""

import math
from typing import Any

import numpy as np

from jcmr.index.exact import Search

KINDS = ("flat", "ivf", "hnsw")


def import_faiss() -> Any:
    """FAISS, whose Python API is generated and has no types.

    Raises:
      ImportError: it is not installed.
    """
    try:
        import faiss
    except ImportError as error:
        raise ImportError(
            "Approximate search needs FAISS: pip install 'jcmr[ann]', or use the exact engine."
        ) from error
    return faiss


def make_search(
    vectors: np.ndarray,
    kind: str = "hnsw",
    lists: int = 0,
    probes: int = 16,
    links: int = 32,
    build_effort: int = 128,
    search_effort: int = 64,
) -> Search:
    """Builds an index of FAISS.

    Args:
      vectors: float32 [n, d].
      kind: "flat" compares all (exact); "ivf" compares what lies in the `probes` nearest of `lists`
        clusters; "hnsw" walks a graph with `links` a node.
      lists: clusters of "ivf"; 0 picks 4 sqrt(n), fewer where that leaves too few rows to each.
      probes: of "ivf"; more finds more and takes longer.
      links: of "hnsw".
      build_effort: of "hnsw" (efConstruction).
      search_effort: of "hnsw" (efSearch); more finds more and takes longer.

    Raises:
      ImportError: FAISS is not installed.
      ValueError: no such kind.
    """
    if kind not in KINDS:
        raise ValueError(f"The index of FAISS is one of {', '.join(KINDS)}, not {kind!r}.")
    faiss = import_faiss()
    size, dimension = vectors.shape
    rows: Any = np.ascontiguousarray(vectors, np.float32)
    index: Any
    if kind == "hnsw":
        index = faiss.IndexHNSWFlat(dimension, links, faiss.METRIC_INNER_PRODUCT)
        index.hnsw.efConstruction = build_effort
    else:
        index = faiss.IndexFlatIP(dimension)
    if kind == "ivf":
        lists = lists or max(1, min(int(4 * math.sqrt(size)), size // 40))
        index = faiss.IndexIVFFlat(index, dimension, lists, faiss.METRIC_INNER_PRODUCT)
        index.train(rows)
    index.add(rows)

    def search(
        queries: np.ndarray, k: int, allowed: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        bits = None if allowed is None else np.packbits(allowed, bitorder="little")
        chosen = {} if bits is None else {"sel": faiss.IDSelectorBitmap(bits)}
        if kind == "ivf":
            how = faiss.SearchParametersIVF(nprobe=min(probes, lists), **chosen)
        elif kind == "hnsw":
            how = faiss.SearchParametersHNSW(efSearch=max(search_effort, k), **chosen)
        else:
            how = faiss.SearchParameters(**chosen)
        scores, found = index.search(np.ascontiguousarray(queries, np.float32), k, params=how)
        return np.where(found >= 0, scores, -np.inf).astype(np.float32), found

    return search
