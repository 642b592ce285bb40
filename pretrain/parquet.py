"""Hugging Face data sets on disk: parquet files, or what ``save_to_disk`` wrote.

The ``datasets`` package turns parquet files into Arrow files in the cache folder once (the same
size again on disk), because a row of a parquet file cannot be read without its whole row group; Arrow
files are memory-mapped. timm's own reader of such data sets does the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dogmed.errors import DataError
from dogmed.pretrain.names import Names


class ParquetSource:
    """Rows of a data set, undecoded."""

    def __init__(self, rows: Any, column: str, names: Names):
        self.rows, self.column, self.names = rows, column, names

    def read(self, place: int) -> bytes:
        image = self.rows[place][self.column]
        return image["bytes"] if image["bytes"] is not None else Path(image["path"]).read_bytes()


def open_parquet(
    root: Path, split: str, files: Sequence[Path], cache_dir: Path
) -> tuple[tuple[str, ...], np.ndarray, ParquetSource]:
    """Open the rows of a split, in file order; classes in the order the data set declares.

    Raises:
        DataError: ``datasets`` is not installed, a file is damaged, or no column of images or of
            class labels is declared.
    """
    try:
        import datasets
    except ImportError:
        raise DataError(
            f"{root}: parquet files need the package datasets; pip install 'dogmed[parquet]'"
        ) from None
    import pyarrow
    import pyarrow.compute

    try:
        if files:
            rows = datasets.load_dataset(
                "parquet",
                data_files={split: [str(file) for file in files]},
                split=split,
                cache_dir=str(cache_dir / "parquet"),
            )
        else:
            saved = datasets.load_from_disk(str(root))
            held = [name for name in (split, "validation") if name in saved]
            if split == "train":
                held = held[: held.count("train")]
            if not held:
                raise DataError(f"{root} has no {split} split, but {', '.join(saved)}")
            rows = saved[held[0]]
    except (pyarrow.ArrowException, datasets.exceptions.DatasetsError) as error:
        why = str(error.__cause__ or error).splitlines()[0]
        raise DataError(f"{root}: a parquet file of {split} cannot be read ({why})") from error
    images = [name for name, kind in rows.features.items() if isinstance(kind, datasets.Image)]
    labels = [name for name, kind in rows.features.items() if isinstance(kind, datasets.ClassLabel)]
    if not images or not labels:
        raise DataError(
            f"{root}: the data set declares no column of "
            f"{'images' if not images else 'class labels'}, but {', '.join(rows.features)}"
        )
    rows = rows.cast_column(images[0], datasets.Image(decode=False))
    label_column = rows.select_columns(labels[0]).with_format("arrow")[:].column(0)
    numbers = np.asarray(label_column.to_numpy(), dtype=np.int64)
    paths: list[str | None] = []
    for part in rows.select_columns(images[0]).with_format("arrow").iter(1000):
        paths += pyarrow.compute.struct_field(part.column(0), "path").to_pylist()
    classes = tuple(rows.features[labels[0]].names)
    if len(numbers) and not 0 <= numbers.min() <= numbers.max() < len(classes):
        raise DataError(f"{root}: {split} has rows without a label")
    names = Names.pack(
        f"{row:08d}-{Path(path or 'unnamed').name}" for row, path in enumerate(paths)
    )
    return classes, numbers, ParquetSource(rows, images[0], names)
