"""The tasks against medmnist itself."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from dogmed.data.tasks import (
    KINDS,
    OFFICIAL_SIZES,
    evaluator_task,
    get_task,
    medmnist_info,
    official_file,
    official_samples,
    official_tasks,
)
from dogmed.errors import ConfigError, DataError


@pytest.fixture(scope="module")
def medmnist_own(tmp_path_factory):
    """medmnist's own INFO; imported with another home, where it may create its folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOME", str(tmp_path_factory.mktemp("home")))
        from medmnist import INFO
    return INFO


def test_info_equals_medmnists_own(medmnist_own):
    assert medmnist_info() == medmnist_own


def test_twelve_tasks_with_their_kinds():
    kinds = {name: task.kind for name, task in official_tasks().items()}
    assert len(kinds) == 12
    assert kinds["pneumoniamnist"] == kinds["breastmnist"] == "binary"
    assert kinds["chestmnist"] == "multi-label"
    assert kinds["retinamnist"] == "ordinal"
    assert sorted(kinds.values()).count("multi-class") == 8
    assert official_tasks()["chestmnist"].num_classes == 14
    assert official_tasks()["chestmnist"].label_width == 14
    assert official_tasks()["pneumoniamnist"].num_classes == 2
    assert official_tasks()["pneumoniamnist"].label_width == 1
    assert official_tasks()["dermamnist"].licence == "CC BY-NC 4.0"


def test_files_equal_medmnists(medmnist_own):
    for name in official_tasks():
        info = medmnist_own[name]
        assert official_file(name, 28).md5 == info["MD5"]
        assert official_file(name, 28).name == f"{name}.npz"
        for size in OFFICIAL_SIZES[1:]:
            file = official_file(name, size)
            assert (file.url, file.md5) == (info[f"url_{size}"], info[f"MD5_{size}"])
            assert file.name == f"{name}_{size}.npz" and f"/{file.name}?" in file.url
        assert official_samples(name) == info["n_samples"]


def test_evaluator_task_is_accepted_by_the_evaluator(medmnist_own):
    from medmnist.evaluator import getACC

    assert {evaluator_task(k) for k in KINDS} == {i["task"] for i in medmnist_own.values()}
    labels, scores = np.array([[0], [1]]), np.array([[0.9, 0.1], [0.2, 0.8]])
    assert getACC(labels, scores, evaluator_task("multi-class")) == 1.0
    with pytest.raises(ConfigError, match="did you mean 'multi-class'"):
        evaluator_task("multiclass")


def test_unknown_names_are_told_in_one_line():
    with pytest.raises(ConfigError, match=r"did you mean 'pathmnist'.*dogmed data list") as caught:
        get_task("pathmnits")
    assert "\n" not in str(caught.value)
    with pytest.raises(DataError, match=r"no file or folder data/mine\.npz"):
        get_task("data/mine.npz")
    with pytest.raises(ConfigError, match="28, 64, 128, 224 px, not 96"):
        official_file("pathmnist", 96)
    assert get_task("PathMNIST") is official_tasks()["pathmnist"]


def test_tasks_need_neither_medmnist_nor_torch_and_create_nothing(tmp_path):
    code = (
        "import sys; from dogmed.data.tasks import official_tasks; official_tasks();"
        "sys.exit(any(m in sys.modules for m in ('medmnist', 'torch', 'pandas')))"
    )
    home = {"HOME": str(tmp_path), "PATH": "/usr/bin:/bin"}
    assert subprocess.run([sys.executable, "-c", code], env=home).returncode == 0
    assert list(tmp_path.iterdir()) == []
