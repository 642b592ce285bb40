"""The command: the files it writes, and what it says where there are no runs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from dogmed import cli

AddRun = Callable[..., Path]


def test_the_command_writes_all_files(add_run: AddRun, out: Path, tmp_path: Path, capsys) -> None:
    add_run()
    add_run(1.0, model="convnextv2_atto")
    assert (
        cli.main(["report", "--out", str(out), "--to", str(tmp_path / "to"), "--resamples", "100"])
        == 0
    )
    written = {file.name for file in (tmp_path / "to").iterdir()}
    assert written == {
        "report.html",
        "report.md",
        "report.tex",
        "report.csv",
        "runs.csv",
        "comparisons.csv",
        "cost.csv",
    }
    assert "SYNTHETIC" in capsys.readouterr().out


def test_no_runs_at_all_is_one_line_that_says_how_to_make_some(tmp_path: Path, capsys) -> None:
    assert cli.main(["report", "--out", str(tmp_path)]) == 2
    (tmp_path / "finetune").mkdir()
    assert cli.main(["report", "--out", str(tmp_path)]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2 and all("dogmed benchmark" in line for line in lines)
    assert [path.name for path in tmp_path.iterdir()] == ["finetune"]
