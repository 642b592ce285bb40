"""What an analysis leaves behind: where it goes."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

from dogmed.analysis.output import folder_of, folder_of_all


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
