"""What is asked for: arguments that do not fit, the cache that is usual."""

from __future__ import annotations

import pytest

from dogmed.data import prepare
from dogmed.data.request import default_cache_dir
from dogmed.errors import ConfigError


def test_arguments_that_do_not_fit(make_npz, tmp_path, cache):
    own = make_npz()
    for kwargs, words in (
        ({"task": own, "data": "synthetic"}, "--data synthetic is for the official tasks"),
        ({"task": own, "upsample_from": 28}, "--upsample-from is for the official tasks"),
        ({"task": own, "data_dir": tmp_path}, "--data-dir is for the official tasks"),
        ({"task": own, "size": 4}, "size is 4 px, expected 8 to 1024"),
        ({"task": own, "samples": 9}, "samples is for --data synthetic"),
        ({"task": "retinamnist", "kind": "binary"}, "retinamnist is ordinal by MedMNIST's"),
        ({"task": "retinamnist", "data": "sythetic"}, "did you mean 'synthetic'"),
        ({"task": "retinamnist", "size": 100}, "is published at 28, 64, 128, 224 px"),
        (
            {"task": "retinamnist", "data": "synthetic", "data_dir": tmp_path},
            "--data-dir does not go with --data synthetic",
        ),
    ):
        with pytest.raises(ConfigError, match=words):
            prepare(**{"size": 64, "cache_dir": cache, **kwargs})
    assert not cache.exists()


def test_default_cache_is_the_users(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert default_cache_dir().name == "dogmed" and tmp_path in default_cache_dir().parents
