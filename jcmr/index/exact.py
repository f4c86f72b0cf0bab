"""Exact maximum inner product search: blocks of rows pass by, and each query keeps its best k.

Rows lie on the devices in equal blocks, each spread over all devices. One compiled program folds a
block into the running best, so that an index of any size uses the same program, a swap changes only
what it is called with, and the scores of a tile are all that is ever held of them.

Rows may be stored in fewer bits. They then propose candidates, which are scored again in float32
from the host's vectors. How far a narrow score can be from the true one is known (Cauchy-Schwarz on
what rounding took from the rows and from the query), so that a query knows whether a row outside
its candidates could belong to the best; where one could, the float32 rows pass by as well.

So exact means: every row was compared or ruled out, and the order is that of float32 products, of
equal ones the lower row first, whatever the storage, the blocks and the devices. Rows that differ
by less than float32 rounding may change places: the order of its sums depends on the number of
queries.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import lru_cache, partial
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jcmr.core import parallel
from jcmr.core.dtypes import HIGHEST
from jcmr.core.parallel import AXIS
from jcmr.core.types import Array
from jcmr.ops.topk import TopK, merge_tile

STORAGES = ("float32", "bfloat16", "int8")
BLOCK_CPU, BLOCK = 1 << 12, 1 << 18
"""Most rows of a block on one device: a CPU pays for padding, an accelerator waits for calls."""
SMALLEST = 1 << 8
"""Fewest."""
TILE = 1 << 22
"""Scores of a tile; on CPU they stay in the cache."""
NARROW_TILE = 1 << 22
"""Numbers of rows that are widened at a time."""
MANY = 1 << 8
"""Queries from which on they are the left side of the product."""
QUERIES = 1 << 10
"""Most queries of one pass."""
CANDIDATES = 4
"""Narrow storage proposes this many times k."""


class Search(Protocol):
    """What every engine is: a function of queries."""

    def __call__(
        self, queries: np.ndarray, k: int, allowed: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """The best k rows of each query.

        Args:
          queries: float32 [q, d].
          k: at most the number of rows n.
          allowed: bool [n], the rows to choose from; all when None.

        Returns:
          (scores float32 [q, k], rows int64 [q, k]), best first; -inf and -1 where there are fewer.
        """
        ...


class Block(NamedTuple):
    """Rows on the devices, [b, ...] spread along the first axis."""

    rows: Any
    """[b, d] in the dtype of storage."""
    scale: Any
    """float32 [b], what int8 rows are multiplied by; else None."""
    live: Any
    """bool [b], False for padding."""


class Rounding(NamedTuple):
    """How much storage changed of the rows, in lengths of vectors."""

    taken: float
    """Largest |x - stored x|."""
    longest: float
    """Largest |x|."""


def quantize(x: np.ndarray, storage: str) -> tuple[np.ndarray, np.ndarray | None]:
    """Rows float32 [b, d] as (stored [b, d], scale [b] or None)."""
    if storage != "int8":
        return x.astype(jnp.dtype(storage)), None
    scale = np.abs(x).max(axis=1) / 127
    stored = np.rint(x / np.where(scale > 0, scale, 1)[:, None]).astype(np.int8)
    return stored, scale.astype(np.float32)


def pad_rows(x: np.ndarray, size: int) -> np.ndarray:
    """`x` [n, ...] filled up with zeros to [size, ...]."""
    return np.concatenate([x, np.zeros((size - len(x), *x.shape[1:]), x.dtype)])


def tile_scores(rows: Array, scale: Array | None, queries: Array) -> Array:
    """Scores float32 [q, t] of queries float32 [q, d] with stored rows [t, d].

    Narrow rows meet queries in bfloat16, which holds int8 exactly. A CPU has no such product; their
    float32 product is the same, for products of two bfloat16 numbers are exact in float32.
    """
    if rows.dtype != jnp.float32:
        wide = jnp.float32 if jax.default_backend() == "cpu" else jnp.bfloat16
        rows, queries = rows.astype(wide), queries.astype(jnp.bfloat16).astype(wide)
    product = partial(jnp.matmul, precision=HIGHEST, preferred_element_type=jnp.float32)
    if len(queries) < MANY:
        # Few columns are the faster way round on a CPU; XLA would turn it back without the barrier.
        scores = lax.optimization_barrier(product(rows, queries.T)).T
    else:
        scores = product(queries, rows.T)
    return scores if scale is None else scores * scale


def tile_rows(block: int, dimension: int, num_queries: int, dtype: Any) -> int:
    """Rows of a tile, a power of two that divides `block`."""
    limit = max(TILE // max(num_queries, 1), 1)
    if dtype != jnp.float32:
        limit = min(limit, max(NARROW_TILE // dimension, 1))
    return min(block, 1 << (limit.bit_length() - 1))


def fold_shard(queries: Array, start: Array, end: Array, block: Block, best: TopK) -> TopK:
    """Folds one device's part of a block into its best [1, q, k].

    The block holds rows from `start` on; there are none from `end` on.
    """
    size, dimension = block.rows.shape
    tile = tile_rows(size, dimension, len(queries), block.rows.dtype)
    first = start + parallel.first_row(size, AXIS)
    num_tiles = jnp.clip(-(-(end - first) // tile), 0, size // tile)

    def one_tile(i: Any, best: TopK) -> TopK:
        rows, scale, live = jax.tree.map(
            lambda x: lax.dynamic_slice_in_dim(x, i * tile, tile), block
        )
        return merge_tile(best, tile_scores(rows, scale, queries), live, first + i * tile)

    best = jax.tree.map(lambda x: x[0], best)
    best = one_tile(0, best) if tile == size else lax.fori_loop(0, num_tiles, one_tile, best)
    return jax.tree.map(lambda x: x[None], best)


@lru_cache
def make_fold(mesh: Mesh) -> Callable[..., TopK]:
    """The compiled `fold_shard` over the devices of `mesh`; best is [devices, q, k]."""
    shared, split = PartitionSpec(), PartitionSpec(AXIS)
    mapped = jax.shard_map(
        fold_shard, mesh=mesh, in_specs=(shared, shared, shared, split, split), out_specs=split
    )
    # Named, for on one device jit would say "not split", and the next block would miss the cache.
    return jax.jit(mapped, out_shardings=NamedSharding(mesh, split))


def compile_fold(
    mesh: Mesh, num_queries: int, block: int, dimension: int, k: int, storage: str = "float32"
) -> Any:
    """The program of blocks of such shapes, without rows: to count its memory and its work."""

    def shape(*sizes: int, dtype: Any = jnp.float32) -> Any:
        return jax.ShapeDtypeStruct(sizes, dtype)

    scale = shape(block) if storage == "int8" else None
    rows = shape(block, dimension, dtype=jnp.dtype(storage))
    number, best = shape(dtype=jnp.int32), (mesh.size, num_queries, k)
    return (
        make_fold(mesh)
        .lower(
            shape(num_queries, dimension),
            number,
            number,
            Block(rows, scale, shape(block, dtype=bool)),
            TopK(shape(*best), shape(*best, dtype=jnp.int32)),
        )
        .compile()
    )


def no_best(mesh: Mesh, num_queries: int, k: int) -> TopK:
    """The best of nothing, [devices, q, k]."""
    shape = mesh.size, num_queries, k
    best: Any = np.full(shape, -np.inf, np.float32), np.full(shape, -1, np.int32)
    return TopK(*jax.device_put(best, NamedSharding(mesh, PartitionSpec(AXIS))))


@jax.jit
def merge_devices(best: TopK) -> TopK:
    """The best [q, k] of all devices [devices, q, k]; of equal scores the lower row first."""
    devices, num_queries, k = best.scores.shape
    scores, rows = (x.swapaxes(0, 1).reshape(num_queries, devices * k) for x in best)
    below, rows = lax.sort((-scores, rows), num_keys=2)
    scores, rows = -below[:, :k], rows[:, :k]
    return TopK(scores, jnp.where(scores > -jnp.inf, rows, -1))


class Database(NamedTuple):
    """Rows on the devices, and where they came from."""

    vectors: np.ndarray
    """float32 [n, d] on the host."""
    blocks: Sequence[Block]
    block: int
    """Rows of each."""
    rounding: Rounding
    mesh: Mesh


def block_rows(size: int, mesh: Mesh) -> int:
    """Rows of the blocks of an index that can hold `size`."""
    most = BLOCK_CPU if mesh.devices.flat[0].platform == "cpu" else BLOCK
    wanted = max(-(-size // mesh.size), SMALLEST)
    return min(1 << (wanted - 1).bit_length(), most) * mesh.size


def make_blocks(
    vectors: np.ndarray, storage: str, block: int, mesh: Mesh
) -> Iterator[tuple[Block, Rounding]]:
    """Blocks of `vectors` float32 [n, d] on the devices, one at a time."""
    split = NamedSharding(mesh, PartitionSpec(AXIS))
    for start in range(0, len(vectors), block):
        x = vectors[start : start + block]
        rows, scale = quantize(x, storage)
        stored = rows.astype(np.float32) * (1 if scale is None else scale[:, None])
        lengths = [np.linalg.norm(y, axis=1).max() for y in (x - stored, x)]
        whole = Block(rows, scale, np.ones(len(x), bool))
        whole = jax.tree.map(lambda y: pad_rows(y, block), whole)
        yield jax.device_put(whole, split), Rounding(*map(float, lengths))


def make_database(
    vectors: np.ndarray, storage: str = "float32", capacity: int = 0, mesh: Mesh | None = None
) -> Database:
    """Puts rows on the devices.

    Args:
      vectors: float32 [n, d]; kept on the host as well, where they may be a map of a file.
      storage: "float32", "bfloat16" (half the memory) or "int8" (a quarter).
      capacity: as many rows as an index of this shape is to grow to without another program. From
        16,384 rows a device on (262,144 on an accelerator) any number is.
      mesh: devices to spread the rows over; all of this process when None.

    Raises:
      ValueError: no such storage.
    """
    if storage not in STORAGES:
        raise ValueError(f"Storage is one of {', '.join(STORAGES)}, not {storage!r}.")
    mesh = mesh or parallel.make_mesh(jax.local_devices())
    block = block_rows(max(len(vectors), capacity), mesh)
    blocks, changed = zip(*make_blocks(vectors, storage, block, mesh))
    rounding = Rounding(*(max(x) for x in zip(*changed)))
    return Database(vectors, blocks, block, rounding, mesh)


def best_rows(
    database: Database, blocks: Iterable[Block], queries: np.ndarray, k: int, allowed: Any
) -> Any:
    """The best k rows of queries [q, d] among those of `blocks`, as numpy."""
    mesh, size = database.mesh, len(database.vectors)
    padded = parallel.replicate(pad_rows(queries, padded_size(len(queries))), mesh)
    split = NamedSharding(mesh, PartitionSpec(AXIS))
    best, fold = no_best(mesh, len(padded), k), make_fold(mesh)
    for start, block in zip(range(0, size, database.block), blocks):
        if allowed is not None:
            live = pad_rows(allowed[start : start + database.block], database.block)
            block = block._replace(live=jax.device_put(live, split))
        best = fold(padded, np.int32(start), np.int32(size), block, best)
    found = jax.device_get(merge_devices(best))
    return jax.tree.map(lambda x: x[: len(queries)], found)


def padded_size(num_queries: int) -> int:
    """Queries are filled up to a power of two, or to a multiple of 8 from 64 on: few programs."""
    if num_queries < 64:
        return 1 << (num_queries - 1).bit_length()
    return -(-num_queries // 8) * 8


def rescore(vectors: np.ndarray, queries: np.ndarray, found: Any, k: int) -> Any:
    """The best k of candidates [q, c] by the float32 vectors on the host."""
    scores: Any = np.full(found.scores.shape, -np.inf, np.float32)
    step = max(1, NARROW_TILE // (found.scores.shape[1] * vectors.shape[1]))
    for start in range(0, len(queries), step):
        part = slice(start, start + step)
        scores[part] = np.matmul(vectors[found.payload[part]], queries[part, :, None])[..., 0]
    scores = np.where(found.payload >= 0, scores, -np.inf)
    order = np.lexsort((found.payload, -scores))[:, :k]
    best: Any = [np.take_along_axis(x, order, axis=1) for x in (scores, found.payload)]
    return TopK(*best)


def uncertain(database: Database, queries: np.ndarray, found: Any, best: Any) -> np.ndarray:
    """Queries for which a row that was not among the candidates `found` could belong to `best`.

    |<q, x> - <q', x'>| <= |q - q'| |x'| + |q| |x - x'|, and float32 sums of d products are off by
    less than d 2^-24 |q| |x|.
    """
    taken, longest = database.rounding
    rounded = queries.astype(jnp.bfloat16).astype(np.float32)
    lengths = np.linalg.norm(queries, axis=1)
    lost = np.linalg.norm(queries - rounded, axis=1) * (longest + taken) + lengths * taken
    lost += lengths * longest * queries.shape[1] * 2.0**-22
    return found.scores[:, -1] + lost >= best.scores[:, -1]


def search_database(
    database: Database, queries: np.ndarray, k: int, allowed: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """See `Search`; the float32 result whatever the storage."""
    parts: list[Any] = [
        search_part(database, queries[start : start + QUERIES], k, allowed)
        for start in range(0, len(queries), QUERIES)
    ]
    scores, rows = (np.concatenate(list(x)) for x in zip(*parts))
    return scores, rows.astype(np.int64)


def search_part(database: Database, queries: np.ndarray, k: int, allowed: Any) -> Any:
    """`search_database` of up to QUERIES queries."""
    if database.blocks[0].rows.dtype == jnp.float32:
        return best_rows(database, database.blocks, queries, k, allowed)
    num_candidates = min(CANDIDATES * k, len(database.vectors))
    found = best_rows(database, database.blocks, queries, num_candidates, allowed)
    best = rescore(database.vectors, queries, found, k)
    open_questions = found.scores[:, -1] > -np.inf
    open_questions &= uncertain(database, queries, found, best)
    again = np.flatnonzero(open_questions)
    if num_candidates < len(database.vectors) and len(again):
        stream = make_blocks(database.vectors, "float32", database.block, database.mesh)
        wide = best_rows(database, (b for b, _ in stream), queries[again], k, allowed)
        for old, new in zip(best, wide):
            old[again] = new
    return best


def make_search(
    vectors: np.ndarray, storage: str = "float32", capacity: int = 0, mesh: Mesh | None = None
) -> Search:
    """An exact search of `vectors`; arguments as those of `make_database`."""
    return partial(search_database, make_database(vectors, storage, capacity, mesh))
