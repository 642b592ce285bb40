"""The report's numbers against numpy, scikit-learn and statsmodels, and what it makes of broken runs."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.stats
import yaml
from sklearn.metrics import accuracy_score, confusion_matrix, roc_auc_score
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.multitest import multipletests

from dogmed import cli
from dogmed.data.store import prepare
from dogmed.errors import ConfigError, DataError
from dogmed.finetune.report import details
from dogmed.finetune.report.assembly import Report, assemble
from dogmed.finetune.report.page import page
from dogmed.finetune.report.writing import latex, markdown, tex, write_csv

RESAMPLES = 100
AddRun = Callable[..., Path]


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "runs"


def build(out: Path, **options: Any) -> Report:
    return assemble(out, resamples=RESAMPLES, **options)


def rows(report: Report, folder: Path, name: str) -> list[dict[str, str]]:
    folder.mkdir(exist_ok=True)
    write_csv(report, folder)
    with (folder / name).open() as file:
        return list(csv.DictReader(file))


def probabilities(root: Path) -> np.ndarray:
    return np.loadtxt(root / "predictions_test.csv", delimiter=",")[:, 1:]


def test_means_deviations_and_pairs_are_those_of_the_stored_predictions(
    add_run: AddRun, out: Path, prepared_cache: Path, tmp_path: Path
) -> None:
    skills = {"dognext_test": 2.5, "convnextv2_atto": 1.0}
    roots = {
        model: [add_run(skill, model=model, seed=seed) for seed in range(3)]
        for model, skill in skills.items()
    }
    y = prepare(
        "breastmnist", size=28, data="synthetic", cache_dir=prepared_cache, samples=64
    ).labels("test")[:, 0]
    report = build(out)
    means = {(r["model"], r["metric"]): r for r in rows(report, tmp_path / "to", "report.csv")}
    for model, folders in roots.items():
        p = [probabilities(root) for root in folders]
        for metric, values in {
            "acc": [accuracy_score(y, q[:, 1] > 0.5) for q in p],
            "auc": [roc_auc_score(y, q[:, 1]) for q in p],
            "brier": [np.mean(((q - np.eye(2)[y]) ** 2).sum(1)) for q in p],
        }.items():
            row = means[model, metric]
            assert float(row["mean"]) == pytest.approx(np.mean(values), abs=1e-12)
            assert float(row["sd"]) == pytest.approx(np.std(values, ddof=1), abs=1e-12)
            assert float(row["low"]) <= float(row["mean"]) <= float(row["high"])
            assert row["seeds"] == "3" and "seeds" in row["covers"]
    pairs = [
        r for r in rows(report, tmp_path / "to", "comparisons.csv") if r["question"] == "model"
    ]
    assert [(r["first"], r["second"]) for r in pairs] == [
        ("dognext_test, scratch", "convnextv2_atto, scratch")
    ] * 2
    difference = float(means["dognext_test", "acc"]["mean"]) - float(
        means["convnextv2_atto", "acc"]["mean"]
    )
    assert float(pairs[0]["difference"]) == pytest.approx(difference, abs=1e-12)
    for seed, told in enumerate(pairs[0]["mcnemar_p"].split()):
        right = [(probabilities(roots[model][seed])[:, 1] > 0.5) == y for model in skills]
        table = [[0, (right[0] & ~right[1]).sum()], [(right[1] & ~right[0]).sum(), 0]]
        exact = np.sum(table) < 25
        assert float(told) == pytest.approx(
            mcnemar(table, exact=exact, correction=True).pvalue, rel=1e-4
        )
    (where,) = report.sets
    confused = details.confusion(where, where.groups[1], y[:, None])
    assert confused is not None
    expected = sum(confusion_matrix(y, probabilities(r)[:, 1] > 0.5) for r in roots["dognext_test"])
    counts = [[int(cell.text) for cell in row.cells] for row in confused.rows]
    assert np.array_equal(counts, expected)


def test_p_values_are_adjusted_within_a_question_over_all_tasks(add_run: AddRun, out: Path) -> None:
    for task, skill in (("breastmnist", 3.0), ("pneumoniamnist", 1.2), ("bloodmnist", 1.1)):
        add_run(skill, task=task)
        add_run(1.0, task=task, model="convnextv2_atto")
        add_run(2.0, task=task, init="imagenet50ep")
    found = build(out).analysis.comparisons
    for question, metric in {(c.question, c.metric) for c in found}:
        family = [c for c in found if (c.question, c.metric) == (question, metric)]
        adjusted = multipletests([c.difference.p for c in family], method="holm")[1]
        assert [c.adjusted for c in family] == pytest.approx(adjusted)
        assert {c.family for c in family} == {len(family)}
    trivial = [c for c in found if c.question == "trivial"]
    assert {c.difference.covers for c in trivial} == {"test images"}
    for c in found:
        told = "noise" if c.adjusted >= 0.05 else "better" if c.difference.value > 0 else "worse"
        assert c.verdict == told
    assert {c.question for c in found} == {"model", "init", "trivial"}


def test_seeds_that_differ_in_an_option_are_not_averaged(add_run: AddRun, out: Path) -> None:
    add_run(seed=0)
    add_run(seed=1, epochs=5)
    report = build(out)
    (where,) = report.sets
    assert [len(group.runs) for group in where.groups] == [1, 1]
    assert [group.setup.variant for group in where.groups] == ["epochs 3", "epochs 5"]
    assert any("differ in epochs" in note for note in report.notes)


def test_models_run_with_other_options_have_no_verdict(
    add_run: AddRun, out: Path, tmp_path: Path
) -> None:
    for task in ("breastmnist", "bloodmnist"):
        add_run(9.0, task=task)
    add_run(0.0, model="convnextv2_atto", epochs=5)
    add_run(0.0, task="bloodmnist", model="convnextv2_atto")
    report = build(out)
    equal, unequal = (
        next(
            c
            for c in report.analysis.comparisons
            if (c.question, c.metric, c.where.task) == ("model", "acc", task)
        )
        for task in ("bloodmnist", "breastmnist")
    )
    assert unequal.unequal == "epochs 3 and 5" and unequal.difference.p < 0.05
    assert unequal.verdict == "unequal" and unequal.family == 0
    assert equal.verdict == "better" and equal.adjusted == equal.difference.p and equal.family == 1
    assert "UNEQUAL: epochs" in markdown(report)
    headline, _ = report.headlines[0]
    told = "dognext_test vs convnextv2_atto: ACC better in 1, not comparable in 1 of 2 comparisons (2 test sets)"
    assert told in headline
    assert headline.endswith("one seed each: the luck of the seed is not in it")
    (row,) = report.winners[0].rows
    assert row.cells[-1].text == "1 better, 1 not comparable of 2"
    cell = row.cells[[one.task for one in report.sets].index("breastmnist")]
    assert (cell.sub, cell.mark, cell.shade) == ("SYNTHETIC", "unequal", 0)
    assert any(note.startswith("One seed each: the luck") for note in report.winners[0].notes)
    pairs = [
        r for r in rows(report, tmp_path / "to", "comparisons.csv") if r["question"] == "model"
    ]
    assert {(r["verdict"], r["p_holm"] == "") for r in pairs if r["unequal"]} == {
        ("not comparable", True)
    }
    assert not report.analysis.ranks


def test_one_seed_has_no_deviation_and_says_so(add_run: AddRun, out: Path) -> None:
    add_run()
    add_run(0.5, model="convnextv2_atto")
    report = build(out)
    assert "±" not in report.scores[0].rows[0].cells[0].plain
    assert all("One seed each" in " ".join(table.notes) for table in report.comparisons)
    assert all("the luck of the seed is not in it" in told for told, _ in report.headlines)
    add_run(seed=1)
    add_run(0.5, model="convnextv2_atto", seed=1)
    assert "luck of the seed" not in markdown(build(out))


def test_broken_and_unfinished_runs_are_counted_and_named(add_run: AddRun, out: Path) -> None:
    for seed in range(6):
        add_run(seed=seed)
    root = out / "finetune" / "breastmnist-synthetic" / "dognext_test-scratch-28"
    (root / "seed1" / "result.json").unlink()
    (root / "seed2" / "result.json").write_text('{"task": "brea')
    (root / "seed3" / "predictions_test.csv").write_text("0,0.5,0.5\n")
    result = json.loads((root / "seed4" / "result.json").read_text())
    del result["weights_sha256"], result["trivial_test_acc"]
    (root / "seed4" / "result.json").write_text(json.dumps(result))
    options = yaml.safe_load((root / "seed4" / "config.yaml").read_text())
    for key in ("label", "experiment", "parent_run"):
        del options[key]
    (root / "seed4" / "config.yaml").write_text(yaml.safe_dump(options))
    (root / "seed5" / "metrics.jsonl").unlink()
    (root / "seed0").rename(root / "seed0.old1")
    report = build(out)
    notes = "\n".join(report.notes)
    assert "unfinished: breastmnist-synthetic/dognext_test-scratch-28/seed1 (epoch 3 of 3)" in notes
    assert "damaged, left out: breastmnist-synthetic/dognext_test-scratch-28/seed2" in notes
    assert re.search(
        r"seed3: predictions_test.csv: 1 rows of 2 probabilities, expected \d+ rows", notes
    )
    assert "seed5: metrics.jsonl" in notes
    (group,) = report.sets[0].groups
    assert group.seeds == (3, 4, 5)
    assert "1 unfinished" in " ".join(report.facts) and "1 damaged" in " ".join(report.facts)
    assert page(report)


def test_without_prepared_data_the_scores_stay_and_comparisons_go(
    add_run: AddRun, out: Path, tmp_path: Path
) -> None:
    for root in (add_run(), add_run(1.0, model="convnextv2_atto")):
        options = yaml.safe_load((root / "config.yaml").read_text())
        (root / "config.yaml").write_text(
            yaml.safe_dump(options | {"cache_dir": str(tmp_path / "elsewhere")})
        )
    report = build(out)
    assert not report.analysis.comparisons
    assert any("not on this machine" in note for note in report.notes)
    assert report.scores[0].rows[0].cells[0].text != "·"
    assert "Nothing to compare" in page(report)


def test_synthetic_data_are_told_everywhere_and_stand_beside_no_published_number(
    add_run: AddRun, out: Path
) -> None:
    add_run()
    report = build(out)
    for written in (markdown(report), latex(report), page(report)):
        assert "ALL data are SYNTHETIC" in written
        assert "DenseNet" not in written


def test_published_numbers_stand_beside_official_data_with_their_pixels(
    add_run: AddRun, out: Path
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
    add_run: AddRun, out: Path
) -> None:
    add_run(source="variant")
    report = build(out)
    assert not report.sets[0].official and report.sets[0].short == "Breast"
    assert "MedMNIST+" not in markdown(report) and not report.scores[0].sources


def test_same_runs_give_the_same_bytes_and_time_is_in_the_cost_alone(
    add_run: AddRun, out: Path, tmp_path: Path
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


def test_over_enough_tasks_there_are_ranks_and_a_verdict(add_run: AddRun, out: Path) -> None:
    tasks = ["breastmnist", "pneumoniamnist", "octmnist", "dermamnist", "bloodmnist", "retinamnist"]
    for task in tasks:
        for model, skill in (("dognext_test", 3.0), ("convnextv2_atto", 0.5)):
            add_run(skill, task=task, model=model)
    report = build(out)
    ranks = report.analysis.ranks[0]
    assert ranks.ranks == (2.0, 1.0) and len(ranks.tasks) == 6  # convnextv2_atto, dognext_test
    pair = report.analysis.pairs[0]
    scores = [
        [report.analysis.of(one, setup)["acc"].value for one in report.sets]
        for setup in (pair.a, pair.b)
    ]
    assert pair.differences == pytest.approx(np.subtract(*scores))
    assert pair.test.p == pytest.approx(scipy.stats.wilcoxon(*scores, method="exact").pvalue)
    assert pair.family == 1 and pair.adjusted == pair.test.p == 2 / 2**6
    assert pair.verdict == "better" and pair.a.model == "dognext_test"
    told = "SYNTHETIC data: dognext_test vs convnextv2_atto (scratch), ACC: better over 6 tasks taken together"
    assert any(line.startswith(told) and sign == "better" for line, sign in report.headlines)
    table = next(table for table in report.over_tasks if table.key.startswith("tasks_acc"))
    assert table.rows[0].cells[0].text == "better" and table.rows[0].cells[3].text == "21 : 0"


def test_train_fractions_are_rows_of_their_own_with_a_curve(add_run: AddRun, out: Path) -> None:
    for fraction in (0.1, 1.0):
        add_run(2 * fraction + 1, train_fraction=fraction)
    report = build(out)
    assert [g.setup.name for g in report.sets[0].groups] == [
        "dognext_test, scratch", "dognext_test, scratch, 10% of train",
    ]  # fmt: skip
    assert "ACC and training images" in page(report)


@pytest.mark.parametrize(
    "name", ["breastmnist_test_[AUC]0.9_[ACC]0.8@2.csv", "predictions_test.csv"]
)
def test_predictions_from_elsewhere_are_one_more_row(
    name: str, add_run: AddRun, out: Path, tmp_path: Path
) -> None:
    root = add_run(1.0)
    folder = tmp_path / "breastmnist"
    folder.mkdir()
    (folder / name).write_text((root / "predictions_test.csv").read_text())
    (folder / "breastmnist_val_[AUC]0.9_[ACC]0.8@2.csv").write_text("0,1,0\n")
    report = build(out, predictions=[f"theirs={folder}"])
    assert [row.head.text for row in report.scores[0].rows] == ["dognext_test, scratch", "theirs"]
    (c,) = [
        c for c in report.analysis.comparisons if (c.question, c.metric) == ("predictions", "acc")
    ]
    assert c.difference.value == 0 and c.verdict == "noise"


def test_predictions_that_do_not_fit_are_refused_in_one_line(
    add_run: AddRun, out: Path, tmp_path: Path
) -> None:
    add_run()
    file = tmp_path / "breastmnist_test_x.csv"
    file.write_text("0,0.5,0.5\n1,0.5,0.5\n")
    with pytest.raises(
        DataError, match=r"has 2 rows of 2 probabilities, expected \d+ rows \(test images\) of 2"
    ):
        build(out, predictions=[f"theirs={file}"])
    for word, told in {
        "theirs": "expected NAME=FILE",
        "theirs=/nowhere/at/all": "no file or folder",
        f"theirs={out}/finetune/..": "no finished run",
    }.items():
        if word.endswith(".."):
            file.rename(tmp_path / "pathmnist_test_x.csv")
            word = f"theirs={tmp_path / 'pathmnist_test_x.csv'}"
        with pytest.raises(ConfigError, match=told) as error:
            build(out, predictions=[word])
        assert "\n" not in str(error.value)


def test_filters_keep_what_is_asked_for_and_refuse_what_is_not_there(
    add_run: AddRun, out: Path
) -> None:
    add_run()
    add_run(label="tuned")
    add_run(model="convnextv2_atto")
    assert len(build(out, label=["none"], model=["dognext_test"]).sets[0].groups) == 1
    with pytest.raises(ConfigError, match="did you mean 'dognext_test'"):
        build(out, model=["dognext_tset"])
    with pytest.raises(ConfigError, match="of all that"):
        build(out, label=["tuned"], model=["convnextv2_atto"])


def test_latex_is_escaped_and_its_environments_are_closed(add_run: AddRun, out: Path) -> None:
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


def test_the_page_asks_for_nothing_from_outside(add_run: AddRun, out: Path) -> None:
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


def test_a_real_run_is_read_as_it_lies(
    run_tiny: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    first = run_tiny(eval__resamples=20)
    report = build(tmp_path / "runs")
    (where,) = report.sets
    estimate = report.analysis.of(where, where.groups[0].setup)
    assert estimate["acc"].value == pytest.approx(first["test"]["acc"], abs=1e-12)
    assert estimate["auc"].value == pytest.approx(first["test"]["auc"], abs=1e-12)
    assert not report.notes
    assert "Validation AUC" in page(report)
