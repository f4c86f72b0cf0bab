"""Encoded pictures as a TFDS data set in array_record files; the only tensorflow_datasets import.

TensorFlow is not needed, neither to write nor to read: pictures go in and come out as the bytes of
image files.
"""

import contextlib
import functools
import io
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds

Encode = Callable[[Sequence[Path]], Iterable[bytes]]
"""Files -> what is stored of each, in the same order."""
SHARD = 1000
"""Pictures in a file; TFDS holds one file's content in memory while it writes."""


class EncodedImages(tfds.core.ShardBasedBuilder):
    """Pictures in the order that they are given, `{"image": bytes, "name": its file}`."""

    VERSION: Any = tfds.core.Version("1.0.0")

    def __init__(self, files: Mapping[str, Sequence[Path]], encode: Encode, **kwargs: Any):
        """Takes split -> files, and what to store of them."""
        self.files, self.encode = files, encode
        super().__init__(file_format="array_record", **kwargs)

    def _info(self) -> tfds.core.DatasetInfo:
        features = {"image": tfds.features.Image(), "name": tfds.features.Text()}
        return self.dataset_info_from_configs(features=tfds.features.FeaturesDict(features))

    def _shard(self, files: Sequence[Path]) -> Iterator[tuple[int, dict[str, Any]]]:
        for index, (path, data) in enumerate(zip(files, self.encode(files))):
            yield index, {"image": data, "name": path.name}

    def _shard_iterators_per_split(self, dl_manager: Any) -> dict[str, list[Callable]]:
        del dl_manager
        return {
            split: [
                functools.partial(self._shard, files[start : start + SHARD])
                for start in range(0, len(files), SHARD)
            ]
            for split, files in self.files.items()
        }


def write_images(folder: Path, files: Mapping[str, Sequence[Path]], encode: Encode) -> None:
    """Writes the splits `files` below `folder`.

    Raises:
      OSError, RuntimeError: what the file system says, for instance that the disk is full.
    """
    tfds.disable_progress_bar()
    with contextlib.redirect_stdout(io.StringIO()):  # whoever encodes reports the progress
        make: Any = EncodedImages  # the type of a TFDS builder class takes no arguments
        make(files, encode, data_dir=str(folder)).download_and_prepare()
    shutil.rmtree(folder / "downloads", ignore_errors=True)


class StoredImages:
    """The bytes of the image files of a split, by position. Opened when first read."""

    def __init__(self, folder: Path, split: str):
        self.folder, self.split = folder, split

    @functools.cached_property
    def source(self) -> Any:
        """The TFDS data source."""
        version = self.folder / EncodedImages.name / str(EncodedImages.VERSION)
        builder: Any = tfds.builder_from_directory(str(version))
        encoded: Any = tfds.decode.SkipDecoding
        return builder.as_data_source(self.split, decoders={"image": encoded()})

    def __getstate__(self) -> dict[str, Any]:
        """Workers open the files themselves."""
        return {name: value for name, value in self.__dict__.items() if name != "source"}

    def __len__(self) -> int:
        """Number of pictures."""
        return len(self.source)

    def __getitem__(self, index: int) -> bytes:
        """Picture `index`."""
        return self.source[index]["image"]
