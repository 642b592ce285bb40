"""Which files an export consists of: ``SHA256SUMS``, as ``sha256sum -c`` reads it.

A folder is used where it lies, and may come to hold images of patients and what was computed of them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

from dogmed.errors import DataError, reason

SUMS = "SHA256SUMS"
_LETTERS = frozenset("0123456789abcdef")


def write_sums(folder: Path) -> None:
    """Write ``SHA256SUMS`` of everything that is in a folder now."""
    sums = {name: sha256(folder / name) for name in names_in(folder)}
    (folder / SUMS).write_text(sums_text(sums), encoding="utf-8")


def sums_text(sums: Mapping[str, str]) -> str:
    """What ``SHA256SUMS`` holds.

    Args:
        sums: hexadecimal, by the file's name in the folder.
    """
    return "".join(f"{digest}  {name}\n" for name, digest in sorted(sums.items()))


def read_sums(folder: Path) -> dict[str, str]:
    """The digests of an export's files, by their names in the folder.

    Raises:
        DataError: there is no such list, or it is damaged.
    """
    path = folder / SUMS
    if not path.is_file():
        raise DataError(
            f"{folder} has no {SUMS}, the list of what dogmed export has written: export it again"
        )
    sums = {}
    try:
        for line in path.read_text(encoding="utf-8").splitlines():
            digest, name = line.split("  ", 1)
            if len(digest) != 64 or not _LETTERS.issuperset(digest):
                raise ValueError(f"'{line}'")
            sums[name] = digest
    except (OSError, ValueError) as error:
        raise DataError(f"{path} is no list of digests and names: {reason(error)}") from error
    return sums


def names_in(folder: Path) -> list[str]:
    """The files at and below a folder, by their names in it."""
    return sorted(f.relative_to(folder).as_posix() for f in folder.rglob("*") if f.is_file())


def sha256(path: Path) -> str:
    """The digest of a file's content, hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
