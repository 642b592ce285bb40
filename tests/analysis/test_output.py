"""What an analysis leaves behind: where it goes."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

from dogmed.analysis.output import folder_of, folder_of_all, names_of


def test_models_together_have_a_folder_of_their_own(tmp_path: Path) -> None:
    """The weights are the same, and so is the mark behind the titles: only the options differ."""

    def evaluation(title: str) -> Any:
        folder = folder_of(tmp_path, "flops", f"{title} 0a1b2c3d", "breastmnist")
        return SimpleNamespace(folder=folder, images=SimpleNamespace(name="breastmnist"))

    full, six, eight = map(evaluation, ("it", "it (stem_stride 6)", "it (stem_stride 8)"))
    assert folder_of_all(tmp_path, "flops", [full]) == full.folder
    folder = folder_of_all(tmp_path, "flops", [full, six])
    assert folder == folder_of_all(tmp_path, "flops", [six, full])
    assert folder.parent == full.folder.parent and folder.name.startswith("2-models-")
    assert folder != folder_of_all(tmp_path, "flops", [full, eight])
    asked = folder_of_all(tmp_path, "flops", [full, six], "strides_6")
    assert asked == folder / "strides_6"


def test_long_names_are_cut_and_still_told_apart(tmp_path: Path) -> None:
    """File systems take 255 bytes; the mark of the weights is at the end of a title."""
    titles = [f"it ({'kernel_size 9, ' * 20}) {mark}" for mark in ("0a1b2c3d", "3d2c1b0a")]
    titles += ["ü" * 300, "short"]
    folders = [folder_of(tmp_path, "flops", title, "images") for title in titles]
    assert len(set(folders)) == 4 and folders[3].name == "short-images"
    assert all(len(folder.name.encode()) < 120 for folder in folders)
    evaluation: Any = SimpleNamespace(folder=folders[3])
    requests = ["resolutions_" + "_".join(map(str, range(28, last))) for last in (400, 401)]
    below = [folder_of_all(tmp_path, "flops", [evaluation], request) for request in requests]
    assert below[0] != below[1] and all(len(folder.name) <= 90 for folder in below)
    assert folder_of_all(tmp_path, "flops", [evaluation]) == folders[3]


def test_many_models_are_counted_not_listed() -> None:
    assert names_of(["a", "b", "c"]) == "a, b, c" and names_of(list("abcd")) == "4 models"
