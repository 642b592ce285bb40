"""Fixtures shared by all tests."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real data named by DOGMED_TEST_DATA; tests that need it are skipped without it."""
    folder = os.environ.get("DOGMED_TEST_DATA")
    if not folder:
        pytest.skip("DOGMED_TEST_DATA is not set: no real data to test on")
    path = Path(folder).resolve()
    assert path.is_dir(), f"DOGMED_TEST_DATA names {path}, which is not a folder"
    return path
