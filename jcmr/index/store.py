"""Snapshots on disk, and the names under which they are served.

    <store>/snapshots/<name>/   manifest.json, vectors.npy, ids.npy, payloads.jsonl, ends.npy
    <store>/aliases/<alias>.json    {"snapshot": name, "generation": how often it was swapped}

A snapshot is written beside its place, brought to the disk and renamed, an alias is a small file
that is replaced: whatever is killed, what was there before stays whole. One process writes at a
time; readers never wait.
"""

import contextlib
import fcntl
import hashlib
import io
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jcmr.index.snapshot import Payloads, Snapshot, chunks

FORMAT = 1
MANIFEST = "manifest.json"
FILES = ("vectors.npy", "ids.npy", "payloads.jsonl", "ends.npy")
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
Told = Callable[[int], None]


class Alias(NamedTuple):
    """What a name stands for."""

    snapshot: str
    generation: int


def sync_folder(folder: Path) -> None:
    """Brings the names in `folder` to the disk."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_file(path: Path, parts: Iterator[bytes]) -> dict[str, Any]:
    """Writes `parts` and brings them to the disk; their number of bytes and sha256."""
    digest, size = hashlib.sha256(), 0
    with path.open("wb") as file:
        for part in parts:
            file.write(part)
            digest.update(part)
            size += len(part)
        file.flush()
        os.fsync(file.fileno())
    return {"bytes": size, "sha256": digest.hexdigest()}


def npy_parts(x: np.ndarray, progress: Told) -> Iterator[bytes]:
    """The bytes of a .npy file of `x`; tells `progress` how many rows are out."""
    header = io.BytesIO()
    description = np.lib.format.dtype_to_descr(x.dtype)
    np.lib.format.write_array_header_1_0(
        header, {"descr": description, "fortran_order": False, "shape": x.shape}
    )
    yield header.getvalue()
    done = 0
    for part in chunks(x):
        yield part.tobytes()
        done += len(part)
        progress(done)


def seal(manifest: dict[str, Any]) -> str:
    """Sha256 of a manifest without its own `seal`."""
    rest = {key: value for key, value in manifest.items() if key != "seal"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def save(snapshot: Snapshot, folder: Path, progress: Told = lambda rows: None) -> None:
    """Writes `folder`; it appears whole or not at all.

    Raises:
      FileExistsError: `folder` is there: snapshots do not change.
    """
    if folder.exists():
        raise FileExistsError(
            f"{folder} exists, and snapshots do not change; save under another name."
        )
    part = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    quiet = lambda rows: None
    contents = (
        npy_parts(snapshot.vectors, progress),
        npy_parts(snapshot.ids, quiet),
        (piece.tobytes() for piece in chunks(snapshot.payloads.text)),
        npy_parts(snapshot.payloads.ends, quiet),
    )
    manifest: dict[str, Any] = {
        "format": FORMAT,
        "size": len(snapshot),
        "dimension": snapshot.dimension,
        "metric": snapshot.metric,
        "encoder": snapshot.encoder,
        "files": {name: write_file(part / name, parts) for name, parts in zip(FILES, contents)},
    }
    manifest["seal"] = seal(manifest)
    write_file(part / MANIFEST, iter([json.dumps(manifest, indent=2).encode() + b"\n"]))
    sync_folder(part)
    os.replace(part, folder)
    sync_folder(folder.parent)


def read_manifest(folder: Path) -> dict[str, Any]:
    """What `folder` says of itself.

    Raises:
      FileNotFoundError: there is no such snapshot.
      ValueError: the manifest was edited or is damaged.
    """
    path = folder / MANIFEST
    if not path.is_file():
        raise FileNotFoundError(f"{folder} is no snapshot of an index: it has no {MANIFEST}.")
    try:
        manifest = json.loads(path.read_text())
        whole = manifest["seal"] == seal(manifest)
    except (ValueError, TypeError, KeyError):
        whole = False
        manifest = {}
    if not whole:
        raise ValueError(f"{path} was edited or is damaged; build the snapshot again.")
    if manifest["format"] != FORMAT:
        raise ValueError(
            f"{path} has format {manifest['format']}, this version of jcmr reads {FORMAT}."
        )
    return manifest


def check_file(path: Path, expected: dict[str, Any], verify: bool) -> None:
    """Raises ValueError where a file is missing, of another length or, if asked, content."""
    size = path.stat().st_size if path.is_file() else -1
    if size != expected["bytes"]:
        what = "is missing" if size < 0 else f"has {size} bytes instead of {expected['bytes']}"
        raise ValueError(f"{path} {what}: the snapshot is damaged; build or copy it again.")
    if not verify:
        return
    with path.open("rb") as file:
        if hashlib.file_digest(file, "sha256").hexdigest() != expected["sha256"]:
            raise ValueError(
                f"{path} is not what was written (its sha256 differs); build or copy it again."
            )


def load(folder: Path, mmap: bool = True, verify: bool = True) -> Snapshot:
    """Reads a snapshot.

    Args:
      folder: what `save` wrote.
      mmap: leave vectors and payloads on disk until they are looked at.
      verify: compare the contents with the manifest's sha256, which reads them once. Lengths are
        always compared.

    Raises:
      FileNotFoundError: there is no such snapshot.
      ValueError: a file was cut off, edited or is missing; says which.
    """
    manifest = read_manifest(folder)
    for name in FILES:
        check_file(folder / name, manifest["files"][name], verify)
    mode = "r" if mmap else None
    vectors, ids, ends = (
        np.load(folder / name, mmap_mode=mode if name == "vectors.npy" else None)
        for name in ("vectors.npy", "ids.npy", "ends.npy")
    )
    lines = folder / "payloads.jsonl"
    text = np.memmap(lines, np.uint8, "r") if mmap else np.fromfile(lines, np.uint8)
    return Snapshot(vectors, ids, Payloads(text, ends), manifest["metric"], manifest["encoder"])


class Store:
    """A folder of named snapshots and of the aliases that point to them."""

    def __init__(self, folder: str | os.PathLike[str]):
        """Opens `folder`; it is made by the first `save`."""
        self.folder = Path(folder)

    def snapshot_folder(self, name: str) -> Path:
        """Where snapshot `name` is, or would be.

        Raises:
          ValueError: such a name could not be a folder's.
        """
        return self.folder / "snapshots" / checked_name(name)

    def names(self) -> list[str]:
        """The snapshots that are there, sorted."""
        folder = self.folder / "snapshots"
        return sorted(p.name for p in folder.glob("*") if (p / MANIFEST).is_file())

    def aliases(self) -> dict[str, Alias]:
        """All aliases by name."""
        found = sorted((self.folder / "aliases").glob("*.json"))
        return {path.stem: self.read_alias(path.stem) for path in found}

    def save(self, name: str, snapshot: Snapshot, progress: Told = lambda rows: None) -> None:
        """Writes `snapshot` as `name`.

        Raises:
          FileExistsError: the name is taken.
          BlockingIOError: another process is writing.
        """
        folder = self.snapshot_folder(name)
        with self.writing():
            save(snapshot, folder, progress)

    def manifest(self, name: str) -> dict[str, Any]:
        """What snapshot `name` says of itself; errors as those of `read_manifest`."""
        folder = self.snapshot_folder(name)
        if not (folder / MANIFEST).is_file():
            there = ", ".join(self.names()) or "none"
            raise FileNotFoundError(f"{self.folder} has no snapshot {name!r}; it has {there}.")
        return read_manifest(folder)

    def load(self, name: str, mmap: bool = True, verify: bool = True) -> Snapshot:
        """Snapshot `name`; arguments and errors as those of `load`."""
        self.manifest(name)
        return load(self.snapshot_folder(name), mmap, verify)

    def swap(self, alias: str, name: str) -> Alias:
        """Lets `alias` stand for snapshot `name` from now on, in one step.

        Raises:
          FileNotFoundError: there is no such snapshot; the alias stays as it is.
          ValueError: the snapshot is damaged; the alias stays as it is.
          BlockingIOError: another process is writing.
        """
        path = self.folder / "aliases" / f"{checked_name(alias)}.json"
        self.load(name, verify=False)
        with self.writing():
            generation = self.read_alias(alias).generation + 1 if path.is_file() else 0
            path.parent.mkdir(parents=True, exist_ok=True)
            new = Alias(name, generation)
            part = path.with_name(f".{path.name}.part")
            write_file(part, iter([json.dumps(new._asdict()).encode() + b"\n"]))
            os.replace(part, path)
            sync_folder(path.parent)
        return new

    def read_alias(self, alias: str) -> Alias:
        """What `alias` stands for.

        Raises:
          FileNotFoundError: there is no such alias.
          ValueError: its file was edited into something else.
        """
        path = self.folder / "aliases" / f"{checked_name(alias)}.json"
        if not path.is_file():
            raise FileNotFoundError(
                f"{self.folder} has no alias {alias!r}; make it with `python -m jcmr.index swap`."
            )
        try:
            found = json.loads(path.read_text())
            return Alias(str(found["snapshot"]), int(found["generation"]))
        except (ValueError, TypeError, KeyError) as error:
            raise ValueError(f"{path} is damaged; swap the alias again to mend it.") from error

    @contextlib.contextmanager
    def writing(self) -> Iterator[None]:
        """Keeps other writers out; the lock goes with the process, however it ends.

        Raises:
          BlockingIOError: another one is writing.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / ".lock").open("a") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise BlockingIOError(
                    f"Another process is writing to {self.folder}; try again when it is done."
                ) from error
            yield


def checked_name(name: str) -> str:
    """`name`, which can be that of a file.

    Raises:
      ValueError: it cannot.
    """
    if not NAME.fullmatch(name):
        raise ValueError(
            f"{name!r} is no name for a snapshot or an alias: letters, digits, dots, - and _ do."
        )
    return name
