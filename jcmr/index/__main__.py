"""`python -m jcmr.index build|add|remove|search|swap|info --store=FOLDER`: indices on disk.

A store holds snapshots, which never change, and aliases such as `live`, each of which stands for
one of them. Serve an alias; to change what is known, build or add under a new name and swap.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from absl import logging

from jcmr.core.progress import Progress
from jcmr.index import ann, exact
from jcmr.index.files import read_ids, read_payloads, read_vectors
from jcmr.index.live import Index, MakeSearch
from jcmr.index.snapshot import METRICS, Snapshot, add, make_snapshot, remove
from jcmr.index.store import Alias, Store

ENGINES = ("exact", *ann.KINDS)


def encoded(args: argparse.Namespace, items: Path) -> tuple[np.ndarray, list[str]]:
    """(vectors, lines) of a file with an item a line, by the run that --run names.

    Raises:
      FileNotFoundError: there is no such file or run.
      ValueError: the run reads no such items, or compares them otherwise than by a product.
    """
    from jcmr.serve.scorer import Scorer  # heavy, and needed by nothing else here

    if not items.is_file():
        raise FileNotFoundError(f"{items} does not exist.")
    lines = items.read_text("utf-8").splitlines()
    scorer = Scorer.load(args.run)
    made = scorer.encode(args.modality, lines)
    single = isinstance(made.values, np.ndarray) and made.values.ndim == 2
    if not single and scorer.run.config.model.get("score") != "cosine":
        raise ValueError(
            f"{args.run} compares items by more than a product of vectors; an index takes systems "
            f"such as dxr, vse or a deterministic pcme."
        )
    args.encoder = args.encoder or scorer.fingerprint
    return made.point(), lines


def read_items(args: argparse.Namespace) -> tuple[Any, np.ndarray, list[Any] | None]:
    """(ids, vectors, payloads) of the files that `build` and `add` are given."""
    payloads, ids = None, None
    if args.run:
        vectors, payloads = encoded(args, args.items)
    else:
        vectors, ids = read_vectors(args.vectors)
    if args.ids:
        ids = read_ids(args.ids)
    payloads = read_payloads(args.payload) if args.payload else payloads
    return np.arange(len(vectors)) if ids is None else ids, vectors, payloads


def save(args: argparse.Namespace, snapshot: Snapshot) -> None:
    """Writes what a command made as --name."""
    progress = Progress("writing rows", len(snapshot))
    args.store.save(args.name, snapshot, progress)
    print(f"Saved {args.name}: {len(snapshot)} items of {snapshot.dimension} dimensions.")


def build(args: argparse.Namespace) -> None:
    """Makes a snapshot of vectors."""
    args.store.snapshot_folder(args.name)
    ids, vectors, payloads = read_items(args)
    save(args, make_snapshot(ids, vectors, payloads, args.metric, args.encoder))


def add_items(args: argparse.Namespace) -> None:
    """Makes a snapshot of another one and of more vectors."""
    ids, vectors, payloads = read_items(args)
    _, old = resolve(args.store, args.index)
    save(args, add(old, like_those_of(old, ids), vectors, payloads, args.encoder))


def remove_items(args: argparse.Namespace) -> None:
    """Makes a snapshot of another one without some items."""
    name, old = resolve(args.store, args.index)
    save(args, remove(old, like_those_of(old, read_ids(args.ids))))
    print(f"{name} is as it was.")


def like_those_of(snapshot: Snapshot, ids: Any) -> Any:
    """Lines of a text file as the whole numbers that they are, where the snapshot's ids are."""
    lines = [str(x) for x in ids]
    if snapshot.ids.dtype.kind == "i" and all(x.removeprefix("-").isdecimal() for x in lines):
        return [int(x) for x in lines]
    return ids


def resolve(store: Store, name: str) -> tuple[Alias, Snapshot]:
    """What `name`, an alias or else a snapshot, stands for."""
    found = store.read_alias(name) if name in store.aliases() else Alias(name, 0)
    return found, store.load(found.snapshot)


def search(args: argparse.Namespace) -> None:
    """Prints the best items of each query, a JSON line a query."""
    queries = encoded(args, args.items)[0] if args.run else read_vectors(args.queries)[0]
    found, snapshot = resolve(args.store, args.index)
    exactly = partial(exact.make_search, storage=args.storage)
    make: MakeSearch = (
        exactly if args.engine == "exact" else partial(ann.make_search, kind=args.engine)
    )
    allowed = matching(snapshot, args.where) if args.where else None
    index = Index(snapshot, make, found.generation)
    scores, ids, valid, generation = index.search(queries, args.k, allowed, encoder=args.encoder)
    for row, (line, some, good) in enumerate(zip(scores, ids, valid)):
        payloads = snapshot.payloads_of(some[good])
        hits = [
            {"id": x.item(), "score": float(score), "payload": payload}
            for x, score, payload in zip(some[good], line[good], payloads)
        ]
        print(json.dumps({"query": row, "generation": generation, "hits": hits}))


def matching(snapshot: Snapshot, conditions: Sequence[str]) -> np.ndarray:
    """Items whose payload has all of the values KEY=VALUE, bool [n].

    Raises:
      ValueError: a condition has no "=".
    """
    wanted = [condition.partition("=") for condition in conditions]
    for key, equals, _ in wanted:
        if not equals:
            raise ValueError(f"--where={key} has no '='; it is --where=KEY=VALUE.")

    def fits(payload: Any) -> bool:
        return isinstance(payload, dict) and all(
            key in payload and str(payload[key]) == value for key, _, value in wanted
        )

    return np.fromiter(map(fits, snapshot.payloads), bool, len(snapshot))


def swap(args: argparse.Namespace) -> None:
    """Lets an alias stand for a snapshot."""
    new = args.store.swap(args.alias, args.name)
    print(f"{args.alias} is {new.snapshot} from now on, generation {new.generation}.")


def info(args: argparse.Namespace) -> None:
    """Lists snapshots and aliases."""
    aliases = args.store.aliases()
    for name in args.store.names():
        about = args.store.manifest(name)
        size = sum(file["bytes"] for file in about["files"].values())
        marks = [f"{a} (generation {x.generation})" for a, x in aliases.items() if x[0] == name]
        print(
            f"{name}: {about['size']} items of {about['dimension']} dimensions, {about['metric']}, "
            f"{size / 1e6:.1f} MB, encoder {about['encoder'] or 'unknown'}"
            + "".join(f", <- {mark}" for mark in marks)
        )
    if not args.store.names():
        print(f"{args.store.folder} has no snapshots.")


def make_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m jcmr.index", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="build|add|remove|search|swap|info")

    def command(name: str, run: Any) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=run.__doc__, description=run.__doc__)
        sub.add_argument("--store", required=True, type=Store, help="the folder of the store")
        sub.set_defaults(command=run)
        return sub

    def items(sub: argparse.ArgumentParser, vectors: str = "--vectors") -> None:
        given = sub.add_mutually_exclusive_group(required=True)
        given.add_argument(vectors, type=Path, help=".npy, or .npz with `vectors`")
        given.add_argument("--items", type=Path, help="a caption or the path of a picture a line")
        sub.add_argument("--run", help="--workdir of the run that encodes --items")
        sub.add_argument("--modality", help="what --items are: text, image, ...")

    def described(sub: argparse.ArgumentParser) -> None:
        sub.add_argument("--ids", type=Path, help=".npy, .json or one a line; default 0 to n - 1")
        sub.add_argument("--payload", type=Path, help="JSON lines, one an item")

    def named(sub: argparse.ArgumentParser) -> argparse.ArgumentParser:
        sub.add_argument("--name", required=True, help="of the new snapshot")
        return sub

    def of(sub: argparse.ArgumentParser) -> argparse.ArgumentParser:
        sub.add_argument("--index", required=True, help="an alias or a snapshot")
        return sub

    sub = named(command("build", build))
    items(sub)
    described(sub)
    sub.add_argument("--metric", choices=METRICS, default="dot")
    sub.add_argument("--encoder", default="", help="fingerprint of what made the vectors")
    sub = named(of(command("add", add_items)))
    items(sub)
    described(sub)
    sub.add_argument("--encoder", help="fingerprint of what made the vectors, to be compared")
    sub = named(of(command("remove", remove_items)))
    sub.add_argument("--ids", required=True, type=Path, help=".npy, .json or one a line")
    sub = of(command("search", search))
    items(sub, "--queries")
    sub.add_argument("--k", type=int, default=10)
    sub.add_argument("--where", action="append", help="KEY=VALUE that payloads must have")
    sub.add_argument("--engine", choices=ENGINES, default="exact")
    sub.add_argument("--storage", choices=exact.STORAGES, default="float32")
    sub.add_argument("--encoder", help="fingerprint of what made the queries, to be compared")
    sub = command("swap", swap)
    sub.add_argument("--alias", required=True)
    sub.add_argument("--name", required=True, help="of the snapshot")
    command("info", info)
    return parser


def main(argv: list[str]) -> None:
    """Runs one command; an error is a sentence on stderr and status 1."""
    parser = make_parser()
    args = parser.parse_args(argv)
    if bool(getattr(args, "items", None)) != bool(getattr(args, "run", None)):
        parser.error("--items and --run belong together: the run's encoder reads the items.")
    if getattr(args, "run", None) and not args.modality:
        parser.error("--run needs --modality: what the items are.")
    logging.set_verbosity(logging.INFO)
    try:
        args.command(args)
    except (ValueError, OSError, ImportError) as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main(sys.argv[1:])
