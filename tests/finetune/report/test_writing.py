"""What is written: the page, Markdown, LaTeX and CSV, and what all of them must say."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from dogmed.finetune.report.assembly import Report
from dogmed.finetune.report.page import page
from dogmed.finetune.report.writing import latex, markdown, tex, write_csv

AddRun = Callable[..., Path]
Build = Callable[..., Report]


def test_synthetic_data_are_told_everywhere_and_stand_beside_no_published_number(
    add_run: AddRun, out: Path, build: Build
) -> None:
    add_run()
    report = build(out)
    for written in (markdown(report), latex(report), page(report)):
        assert "ALL data are SYNTHETIC" in written
        assert "DenseNet" not in written


def test_published_numbers_stand_beside_official_data_with_their_pixels(
    add_run: AddRun, out: Path, build: Build
) -> None:
    add_run(source="official")
    text = markdown(build(out))
    for words in (
        "82.05",
        "89.55 ± 2.53",
        "28 upsampled, selected on val AUC",
        "true 224, selected on val loss",
    ):
        assert words in text
    assert "SYNTHETIC" not in text


def test_no_published_number_stands_beside_a_variant_of_the_official_file(
    add_run: AddRun, out: Path, build: Build
) -> None:
    add_run(source="variant")
    report = build(out)
    assert not report.sets[0].official and report.sets[0].short == "Breast"
    assert "MedMNIST+" not in markdown(report) and not report.scores[0].sources


def test_same_runs_give_the_same_bytes_and_time_is_in_the_cost_alone(
    add_run: AddRun, out: Path, tmp_path: Path, build: Build
) -> None:
    options = [{"model": m, "seed": s} for m in ("dognext_test", "convnextv2_atto") for s in (0, 1)]
    written = []
    for number, seconds in enumerate((60.0, 60.0, 99.0)):
        for one in options:
            add_run(seconds=seconds, **one)
        report, folder = build(out), tmp_path / f"to{number}"
        folder.mkdir()
        write_csv(report, folder)
        files = {f.name: f.read_text() for f in sorted(folder.iterdir())}
        written.append((files, markdown(report), latex(report), page(report)))
    assert written[0] == written[1]
    first, slower = written[0], written[2]
    assert {name for name in first[0] if first[0][name] != slower[0][name]} == {"cost.csv"}
    assert first[1].partition("## Cost")[0] == slower[1].partition("## Cost")[0]
    assert first[3].partition('id="cost"')[0] == slower[3].partition('id="cost"')[0]


def test_latex_is_escaped_and_its_environments_are_closed(
    add_run: AddRun, out: Path, build: Build
) -> None:
    add_run(label="50%_&_more#1")
    add_run()
    text = latex(build(out))
    assert "50\\%\\_\\&\\_more\\#1" in text or "50\\%\\_" in text
    stack = []
    for what, name in re.findall(r"\\(begin|end)\{(\w+)\}", text):
        if what == "begin":
            stack.append(name)
        else:
            assert stack.pop() == name
    assert not stack
    body = re.sub(r"\\usepackage.*|\\documentclass.*", "", text)
    body = "\n".join(line for line in body.splitlines() if not line.startswith("% "))
    assert not re.search(r"(?<!\\)[_#]", body)
    assert "?" not in body
    assert tex("a_b 5% {x} −1 ± 2") == r"a\_b 5\% \{x\} $-$1 $\pm$ 2"


def test_the_page_asks_for_nothing_from_outside(add_run: AddRun, out: Path, build: Build) -> None:
    add_run()
    add_run(1.0, model="convnextv2_atto")
    text = page(build(out))
    assert not re.search(r'(?:src|href)="(?!#|data:,)', text)
    assert not re.search(r"https?://|@import|url\((?!#)", text)
    assert "<script" not in text
    identities = re.findall(r' id="([^"]*)"', text)
    assert len(identities) == len(set(identities))
    assert set(re.findall(r'href="#([^"]*)"', text)) <= set(identities)
    assert len(re.findall(r'<th scope="(?:col|row)"', text)) == len(re.findall(r"<th\b", text))
