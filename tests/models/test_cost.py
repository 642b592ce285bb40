"""Parameters and multiply-accumulates: the thesis's figures, and the table in the README."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]


def table_script() -> Any:
    path = ROOT / "benchmarks" / "model_table.py"
    spec = importlib.util.spec_from_file_location("model_table", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_atto_has_the_size_of_the_thesis():
    assert table_script().cells("dognext_atto") == "3.435 | 0.548"


@pytest.mark.slow
def test_table_in_the_readme_is_what_the_models_cost():
    readme = (ROOT / "README.md").read_text()
    _, _, rest = readme.partition("<!-- models:begin -->")
    table, end, _ = rest.partition("<!-- models:end -->")
    assert end, "README.md has no table between the models:begin and models:end markers"
    assert table.strip() == table_script().table()
