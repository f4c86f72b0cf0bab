"""A trained run as something to call: encode, score, rank, search."""

import dataclasses
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jcmr.core import parallel
from jcmr.core.parallel import AXIS
from jcmr.core.progress import Progress, printer
from jcmr.core.types import Batch, Embedding
from jcmr.data import augment
from jcmr.data.records import stack
from jcmr.eval.embed import encode_batch
from jcmr.eval.tiles import score_tile
from jcmr.serve.embeddings import Embeddings, read_embeddings
from jcmr.serve.items import make_read, read_ready, shapes_of, stored_of
from jcmr.serve.load import Config, Run, load_run, pairs_of
from jcmr.serve.programs import Programs, bucket, buckets, dot, padded, parts_of, search_tiles

KINDS = {"image", "text", "points", "mesh"}
"""Modalities whose items can be read without a data set."""
ZERO = np.int32(0)
searching = jax.jit(search_tiles, static_argnames=("score", "flipped", "mesh", "k"))


class Found(NamedTuple):
    """The best of a gallery for each of n queries, best first."""

    scores: np.ndarray
    """float32 [n, k]; -inf where the gallery is smaller than k."""
    ids: np.ndarray
    """int32 [n, k], positions in the gallery; -1 where it is smaller than k."""


class Scorer:
    """A run of any system: raw items in, embeddings, scores and ranks out.

    Programs are compiled for few sizes and padded to, so that calls of any size use what is there;
    `warm_up` compiles them ahead of time. Calls from several threads are safe.

        scorer = Scorer.load("runs/pcme_scenes")
        gallery = scorer.encode("image", paths)
        found = scorer.search(scorer.encode("text", ["a red circle"]), gallery, k=10)
    """

    def __init__(self, run: Run, mesh: Mesh, batch_size: int = 0, tile: Sequence[int] = ()):
        """See `load`."""
        self.run, self.mesh = run, mesh
        self.fingerprint: str = run.fingerprint
        self.modalities: tuple[str, ...] = tuple(run.task.encode)
        if not set(self.modalities) <= KINDS:
            raise ValueError(
                f"A scorer compares {', '.join(sorted(KINDS))}; {run.config.task} compares "
                f"{' with '.join(self.modalities)}. Use python -m jcmr.launch --mode=eval."
            )
        self.pairs = pairs_of(run)
        options = run.config.eval if "eval" in run.config else {}
        self.sizes = buckets(batch_size or options.get("batch_size", 256), mesh.size, 2)
        rows, columns = tile or options.get("tile", (256, 1024))
        self.rows, self.columns = buckets(rows, mesh.size, 8), buckets(columns, 1, 8)
        self.programs = Programs()
        self._prepare = augment.make_prepare(run.config.data)
        self._read = {name: make_read(run, name)[0] for name in self.modalities}
        self._stored = {name: stored_of(run, name) for name in self.modalities}
        self._shape = {name: self._embedding(name) for name in self.modalities}

    @classmethod
    def load(
        cls,
        path: str | Path,
        config: Config = None,
        devices: Sequence[Any] | None = None,
        batch_size: int = 0,
        tile: Sequence[int] = (),
    ) -> "Scorer":
        """Opens a run. Its data set need not be there.

        Args:
          path: the run's --workdir, one of its checkpoints/<step>, or a folder of
            `python -m jcmr.convert`.
          config: of an experiment; for converted weights alone, which do not say how their items
            are read.
          devices: those to use; None is all.
          batch_size: items encoded at a time; 0 is what the run was evaluated with.
          tile: queries and gallery items scored at a time; empty is as the run was evaluated.

        Raises:
          FileNotFoundError: no run, or one without a finished checkpoint.
          ValueError: it was written by another version, or is damaged.
        """
        mesh = parallel.make_mesh(devices)
        return cls(load_run(path, mesh, config), mesh, batch_size, tile)

    def _embedding(self, modality: str) -> Embedding:
        """Shapes of one item's embedding, leaves [1, ...].

        Raises:
          ValueError: the system of today does not fit the weights.
        """
        batch = self._example(modality, 1)
        task, variables = self.run.task, self.run.variables
        try:
            prepared = jax.eval_shape(self._prepare, batch)
            return jax.eval_shape(task.encode[modality], variables, prepared)
        except Exception as error:  # modules complain of foreign weights in many ways
            raise ValueError(
                f"The checkpoint does not fit the system {self.run.config.task} of this version "
                f"({str(error).strip().splitlines()[0][:200]})."
            ) from error

    def _example(self, modality: str, size: int) -> Batch:
        """Shapes of a batch of inputs, spread over the devices."""
        return shapes_of(self.run, modality, size, NamedSharding(self.mesh, PartitionSpec(AXIS)))

    def encode(
        self, modality: str, items: Sequence[Any] | np.ndarray, ids: Sequence[int] | None = None
    ) -> Embeddings:
        """Encodes items in batches of few sizes.

        Args:
          modality: one of `modalities`.
          items: what `serve.items` reads. "image": paths, bytes, PIL images or pixels, lists of
            those for objects of several views, or arrays of features or regions; "text": strings,
            Paths of text files, or vectors where the run reads texts as such; "points": clouds
            [p, 3] or .npy files; "mesh": files or (vertices, triangles). Examples of a data source
            ({name: array}) are taken as they are.
          ids: seeds of what is random in an item's embedding, such as PCME's samples; None is 0 for
            all, and an item then embeds the same wherever it is.

        Raises:
          ValueError: no items, an unknown modality, or an item that cannot be read; says which.
          FileNotFoundError: an item names no file.
        """
        if modality not in self.modalities:
            raise ValueError(
                f"{self.run.config.task} encodes {', '.join(self.modalities)}, not {modality!r}."
            )
        if isinstance(items, (str, bytes, Path, dict)) or not hasattr(items, "__len__"):
            raise ValueError(
                f"encode takes a list of items, not one {type(items).__name__}: put it in brackets."
            )
        if not len(items):
            raise ValueError(f"There is no {modality} to encode: the list is empty.")
        if ids is not None and len(ids) != len(items):
            raise ValueError(f"There are {len(items)} items and {len(ids)} ids; give one an item.")

        most = self.sizes[-1]
        progress = Progress(f"encoding {modality}", len(items), printer())

        def read(start: int) -> Batch:
            numbers = range(start, min(start + most, len(items)))
            return self._read_batch(modality, items, numbers, ids)

        parts = []
        with ThreadPoolExecutor(1) as reader:  # reads a batch while the one before is encoded
            coming = reader.submit(read, 0)
            for start in range(0, len(items), most):
                batch = coming.result()
                if start + most < len(items):
                    coming = reader.submit(read, start + most)
                parts.append(self._encode_batch(modality, batch))
                progress.step(len(batch["id"]))
        values = jax.tree.map(lambda *xs: np.concatenate(xs), *parts)
        return Embeddings(modality, self.fingerprint, values)

    def _read_batch(
        self, modality: str, items: Any, numbers: range, ids: Sequence[int] | None
    ) -> dict[str, np.ndarray]:
        """Items as a batch; they must have one shape."""
        read, like = self._read[modality], self._stored[modality]
        seeds = [0 if ids is None else int(ids[i]) for i in numbers]
        examples = [
            read_ready(read, like, f"Item {i} ({modality})", items[i], seed)
            for i, seed in zip(numbers, seeds)
        ]
        shapes = [{name: x.shape for name, x in example.items()} for example in examples]
        for i, shape in zip(numbers, shapes):
            if shape != shapes[0]:
                raise ValueError(
                    f"Item {i} ({modality}) has the shape {shape}, item {numbers[0]} has "
                    f"{shapes[0]}; encode items of different sizes in calls of their own."
                )
        return {**stack(examples), "id": np.asarray(seeds, np.int32)}

    def _encode_batch(self, modality: str, batch: Batch) -> Embedding:
        """The embedding of a batch, as numpy."""
        count = len(batch["id"])
        batch = padded(batch, bucket(self.sizes, count))
        placed = parallel.put_batch(batch, self.mesh, "shard_map")
        encoded = self._encoder(modality, placed)(self.run.variables, placed)
        return jax.tree.map(lambda x: np.asarray(x)[:count], jax.device_get(encoded))

    def _encoder(self, modality: str, batch: Batch) -> Any:
        """The program for batches of the shapes of `batch`."""
        key = "encode", modality, *((name, x.shape) for name, x in sorted(batch.items()))
        encode = self.run.task.encode[modality]
        return self.programs.get(
            key,
            lambda: encode_batch.lower(encode, self._prepare, self.mesh, self.run.variables, batch),
        )

    def score(self, queries: Embeddings, gallery: Embeddings) -> np.ndarray:
        """Scores of all pairs, float32 [q, g], higher is better.

        Raises:
          ValueError: not embeddings of this model, or modalities that it does not compare.
        """
        flipped = self._check(queries, gallery)
        scores = np.empty((len(queries), len(gallery)), np.float32)
        blocks = [
            (rows, self._place(queries.values, rows, self.rows))
            for rows in parts_of(len(queries), self.rows[-1])
        ]
        for columns in parts_of(len(gallery), self.columns[-1]):
            inner = self._place(gallery.values, columns, self.columns)
            for rows, outer in blocks:
                program = self._score_program(
                    flipped, queries.modality, gallery.modality, outer, inner
                )
                tile = np.asarray(program(self.run.variables, outer, inner, ZERO, ZERO))
                scores[rows, columns] = tile[
                    : rows.stop - rows.start, : columns.stop - columns.start
                ]
        return scores

    def _place(self, values: Embedding, part: slice, sizes: Sequence[int]) -> Embedding:
        """Some items on every device as one tile [1, r, ...], filled up to one of `sizes`."""
        values = jax.tree.map(lambda x: x[part], values)
        size = bucket(sizes, part.stop - part.start)
        tile = jax.tree.map(lambda x: x[None], padded(values, size))
        return parallel.replicate(tile, self.mesh)

    def _score_program(
        self, flipped: bool, query: str, item: str, outer: Embedding, inner: Embedding
    ) -> Any:
        """The program that scores tiles of these shapes."""
        sizes = (jax.tree.leaves(x)[0].shape[1] for x in (outer, inner))
        return self.programs.get(
            ("score", query, item, *sizes),
            lambda: score_tile.lower(
                self.run.task.score,
                flipped,
                self.mesh,
                self.run.variables,
                outer,
                inner,
                ZERO,
                ZERO,
            ),
        )

    def rank(self, queries: Embeddings, gallery: Embeddings) -> np.ndarray:
        """Positions of the whole gallery for each query, best first, int [q, g].

        Of equal scores the earlier item comes first. `search` needs less memory.
        """
        return np.argsort(-self.score(queries, gallery), axis=1, kind="stable")

    def search(
        self, queries: Embeddings, gallery: Embeddings, k: int = 10, candidates: int = 0
    ) -> Found:
        """The best k of a gallery for each query; the scores of all pairs are never held.

        Args:
          queries: n of them.
          gallery: what is searched; it stays on the devices for the next call.
          k: how many to find.
          candidates: how many a cheap first stage, the product of one vector an item (`point_of`),
            hands over to the score itself; 0 scores everything. `first_stage_recall` tells what
            is lost.

        Raises:
          ValueError: not embeddings of this model, modalities that it does not compare, or a k
            below 1 or above `candidates`.
        """
        flipped = self._check(queries, gallery)
        if k < 1 or 0 < candidates < k:
            raise ValueError(
                f"k is {k} and candidates {candidates}; k is at least 1, candidates at least k, or "
                f"0 for an exact search."
            )
        if not 0 < candidates < len(gallery):
            return self._sweep("values", flipped, queries, gallery, k)
        first = self._sweep("point", False, queries, gallery, candidates).ids
        rows = [
            self._rescore(queries[i : i + 1], gallery, np.sort(ids), k)
            for i, ids in enumerate(first)
        ]
        return Found(*(np.stack(part) for part in zip(*rows)))

    def _rescore(self, query: Embeddings, gallery: Embeddings, ids: np.ndarray, k: int) -> Found:
        """The best k of some items for one query, [k]."""
        scores = self.score(query, gallery[ids])[0]
        best = np.argsort(-scores, kind="stable")[:k]
        return Found(scores[best], ids[best])

    def first_stage_recall(
        self, queries: Embeddings, gallery: Embeddings, k: int, candidates: int
    ) -> float:
        """Share of the best k by an exact search that are among the first stage's candidates."""
        exact = self.search(queries, gallery, k).ids
        first = self._sweep("point", False, queries, gallery, candidates).ids
        found = [np.isin(best, some)[best >= 0].mean() for best, some in zip(exact, first)]
        return float(np.mean(found))

    def _sweep(
        self, what: str, flipped: bool, queries: Embeddings, gallery: Embeddings, k: int
    ) -> Found:
        """The best k by the task's score of "values" or the product of each "point"."""
        tile = bucket(self.columns, min(len(gallery), self.columns[-1]))
        tiles = gallery.tiles(what, tile, self.mesh)
        values = queries.point() if what == "point" else queries.values
        found = []
        for rows in parts_of(len(queries), self.rows[-1]):
            block = self._place(values, rows, self.rows)
            program = self._search_program(
                what, flipped, queries.modality, gallery.modality, block, tiles, k
            )
            best = program(self.run.variables, block, tiles, np.int32(len(gallery)))
            count = rows.stop - rows.start
            found.append([np.asarray(x)[:count, :k] for x in best])
        return Found(*(np.concatenate(part) for part in zip(*found)))

    def _search_program(
        self, what: str, flipped: bool, query: str, item: str, block: Any, tiles: Any, k: int
    ) -> Any:
        """The program that searches galleries of these shapes."""
        depth = 1 << (k - 1).bit_length()
        shapes = (jax.tree.leaves(x)[0].shape[:2] for x in (block, tiles))
        score = dot if what == "point" else self.run.task.score
        size = np.int32(0)
        return self.programs.get(
            ("search", what, query, item, depth, *shapes),
            lambda: searching.lower(
                score, flipped, self.mesh, depth, self.run.variables, block, tiles, size
            ),
        )

    def uncertainty(self, embeddings: Embeddings) -> np.ndarray:
        """Mean log variance of each item, float64 [n], larger = less certain.

        Raises:
          ValueError: the system embeds points.
        """
        self._check_made(embeddings)
        log_var = getattr(embeddings.values, "log_var", None)
        if log_var is None or self.run.config.model.get("deterministic", False):
            raise ValueError(
                f"This run of {self.run.config.task} embeds points; it has no uncertainty."
            )
        return np.asarray(log_var, np.float64).mean(axis=-1)

    def warm_up(self, galleries: Sequence[Embeddings] = (), k: int = 10) -> int:
        """Compiles what later calls need, and returns how many programs there are.

        Those are the encoders and scores of every size, and the searches of `galleries` for k by
        queries of the other modalities, exact ones; another number of views, points or regions
        compiles anew.
        """
        for modality in self.modalities:
            for size in self.sizes:
                self._encoder(modality, self._example(modality, size))
        everywhere = NamedSharding(self.mesh, PartitionSpec())

        def tile(modality: str, size: int) -> Embedding:
            def shape(x: Any) -> Any:
                return jax.ShapeDtypeStruct((1, size, *x.shape[1:]), x.dtype, sharding=everywhere)

            return jax.tree.map(shape, self._shape[modality])

        for query, item in self.pairs:
            flipped = self._flipped(query, item)
            for rows in self.rows:
                for columns in self.columns:
                    shapes = tile(query, rows), tile(item, columns)
                    self._score_program(flipped, query, item, *shapes)
        for gallery in galleries:
            size = bucket(self.columns, min(len(gallery), self.columns[-1]))
            tiles = gallery.tiles("values", size, self.mesh)
            for query, item in self.pairs:
                if item == gallery.modality:
                    for rows in self.rows:
                        flipped = self._flipped(query, item)
                        block = tile(query, rows)
                        self._search_program("values", flipped, query, item, block, tiles, k)
        return len(self.programs.made)

    def _flipped(self, query: str, item: str) -> bool:
        """Whether the score takes the gallery first; see `Task.score`."""
        return self.modalities.index(query) > self.modalities.index(item)

    def _check_made(self, given: Any) -> None:
        """Raises ValueError where something is no embedding of this model."""
        if not isinstance(given, Embeddings):
            raise ValueError(
                f"Expected what `encode` returns, found {type(given).__name__}: encode the items "
                f"first."
            )
        if given.fingerprint != self.fingerprint:
            raise ValueError(
                f"These {given.modality} embeddings were made by another model (fingerprint "
                f"{given.fingerprint}, this is {self.fingerprint}): encode the items with this one."
            )
        if not len(given):
            raise ValueError(f"There are no {given.modality} embeddings to compare.")

    def _check(self, queries: Embeddings, gallery: Embeddings) -> bool:
        """`_flipped` of two sides that belong to this model and can be compared."""
        self._check_made(queries)
        self._check_made(gallery)
        pair = queries.modality, gallery.modality
        if pair not in self.pairs:
            known = ", ".join(f"{a} with {b}" for a, b in self.pairs)
            raise ValueError(
                f"{self.run.config.task} has no score of {pair[0]} with {pair[1]}; it compares "
                f"{known}."
            )
        return self._flipped(*pair)

    def load_embeddings(self, path: str | Path) -> Embeddings:
        """What `Embeddings.save` wrote.

        Raises:
          FileNotFoundError: there is no such file.
          ValueError: it holds something else, or embeddings of another model.
        """
        made = read_embeddings(Path(path))
        self._check_made(made)
        structure = jax.tree.structure(self._shape[made.modality])
        return dataclasses.replace(made, values=jax.tree.unflatten(structure, made.values))
