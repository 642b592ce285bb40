"""``dogmed sync``: log to MLflow what it lacks of the runs in their folders, and nothing twice."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import field
from pathlib import Path

from filelock import FileLock, Timeout

from dogmed.config import configclass, recipe
from dogmed.errors import DataError, DogmedError
from dogmed.tracking import (
    PARENT_TAG,
    Ledger,
    default_uri,
    mend,
    open_store,
    promote,
    shown,
    store_errors,
)
from dogmed.tracking.ledger import NAME

PRUNED = ("mlartifacts", "checkpoints", ".staged")  # hold no runs, but many files


@configclass
class SyncConfig:
    """Log to MLflow what it lacks of the runs that are in folders."""

    folders: tuple[Path, ...] = ()
    """Runs, or folders of them; all under --out if none is given."""
    out: Path = field(default_factory=lambda: Path(recipe("finetune/default")["out"]))
    """Where the runs are, and their MLflow store; MLFLOW_TRACKING_URI comes first."""


def sync(folders: Sequence[Path], out: Path) -> int:
    """Make the store hold what the runs' folders say; print what was done for each.

    Calling it again changes nothing. A run that a process is working on is left alone, as is one that
    was deleted in MLflow, and one that cannot be read or logged does not keep back the others.

    Args:
        folders: runs, or folders of runs; empty for all under ``out``. The runs that they are nested
            under are mended with them.
        out: folder of the runs, of the embedded store, and of artifacts where no server keeps them.

    Returns:
        The exit code: 1 if a run could not be mended, else 0.

    Raises:
        DataError: there are no runs, or the store cannot be used.
    """
    out = out.expanduser()
    if not out.is_dir():
        raise DataError(f"--out {out} is not a folder")
    uri = default_uri(out)
    ledgers = sorted({path for folder in folders or (out,) for path in _find(folder.expanduser())})
    if not ledgers:
        where = ", ".join(map(str, folders or (out,)))
        raise DataError(f"no run in {where} has an {NAME}: none was made with --tracking mlflow")
    try:
        client = open_store(uri, out)
    except store_errors() as error:
        why = shown(str(error).strip().partition("\n")[0])
        raise DataError(f"the MLflow store {shown(uri)} cannot be used: {why}") from error
    print(f"MLflow at {shown(uri)}")
    told_in_a_line: tuple[type[Exception], ...] = (DogmedError, *store_errors())
    mended, failed, changed = [], 0, 0
    keys: dict[str, str] = {}  # of the runs that others may be nested under, by the ids they had
    for path in _parents_first(ledgers, _find(out)):
        try:
            with _alone(path.parent) as free:
                book = Ledger.open(path)
                keys |= dict.fromkeys(book.run_ids, book.key)
                if (parent := book.tags.get(PARENT_TAG)) in keys:
                    book.tags[PARENT_TAG] = keys[parent]
                done = mend(client, uri, out, book) if free else ["at work now, left alone"]
            mended.append(book)
            changed += free and bool(done)
            print(f"{_named(path.parent, out)}: {', '.join(done) or 'in order'}", flush=True)
        except told_in_a_line as error:
            failed += 1
            why = shown(str(error).strip().partition("\n")[0])
            print(f"FAILED  {_named(path.parent, out)}: {why}", file=sys.stderr, flush=True)
    try:
        for line in promote(client, out, mended):
            changed += 1
            print(f"registry: {line}")
    except store_errors() as error:
        failed += 1
        why = shown(str(error).strip().partition("\n")[0])
        print(f"FAILED  registry: {why}", file=sys.stderr)
    print(f"{len(mended)} runs, {changed} changes, {failed} failed" if changed or failed
          else f"{len(mended)} runs, nothing to do")  # fmt: skip
    return 1 if failed else 0


def _find(folder: Path) -> Iterator[Path]:
    """The ledgers at and below a folder.

    Raises:
        DataError: there is no such folder.
    """
    if not folder.is_dir():
        raise DataError(f"{folder} is not a folder")
    for root, names, files in os.walk(folder):
        names[:] = [name for name in names if name not in PRUNED]
        if NAME in files:
            yield Path(root) / NAME


def _parents_first(wanted: Sequence[Path], known: Iterable[Path]) -> list[Path]:
    """The ledgers that are wanted, with those of the runs they are nested under, before them."""
    books: dict[Path, Ledger] = {}
    for path in {*wanted, *known}:
        try:
            books[path] = Ledger.open(path)
        except (DogmedError, OSError):
            continue  # told when its turn comes
    owners = {name: path for path, book in books.items() for name in (book.key, *book.run_ids)}
    ordered: dict[Path, None] = {}

    def visit(path: Path, below: frozenset[Path]) -> None:
        parent = books[path].tags.get(PARENT_TAG) if path in books else None
        if parent in owners and owners[parent] not in below:
            visit(owners[parent], below | {path})
        ordered[path] = None

    for path in wanted:
        visit(path, frozenset({path}))
    return list(ordered)


@contextmanager
def _alone(folder: Path) -> Iterator[bool]:
    """Hold a run's folder, so that no run begins there meanwhile; False if one has begun."""
    try:
        with FileLock(folder / ".lock", timeout=0):
            yield True
    except Timeout:
        yield False


def _named(folder: Path, out: Path) -> str:
    return str(folder.relative_to(out) if folder.is_relative_to(out) else folder)
