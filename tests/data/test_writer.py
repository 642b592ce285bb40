"""Writing to the cache: space, and what others left there."""

from __future__ import annotations

import pytest

from dogmed.data.writer import check_space, clean_stale, locked
from dogmed.errors import DataError


def test_too_little_disk_is_said_first(tmp_path):
    with pytest.raises(DataError, match=r"preparing x needs 1000.0 TB of disk, .* --cache-dir"):
        check_space(tmp_path / "not" / "there", 10**15, "preparing x")


def test_stale_folders_of_other_keys_are_removed_but_not_those_at_work(cache, make_notes):
    prepared = cache / "prepared"
    for key in ("dead-28-npz-00000000", "busy-28-npz-11111111"):
        (prepared / f".tmp-{key}-12345").mkdir(parents=True)
    with locked(cache, "busy-28-npz-11111111", make_notes()):
        clean_stale(prepared, cache)
        assert [p.name for p in prepared.iterdir()] == [".tmp-busy-28-npz-11111111-12345"]
