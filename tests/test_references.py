"""Published numbers: the tables' own means, their own repeated entries, and the official test sets."""

from __future__ import annotations

import numpy as np
import pytest

from dogmed import references
from dogmed.data.tasks import medmnist_info
from dogmed.errors import ConfigError
from dogmed.references import imagenet_tables, medmnist_references

TASKS = tuple(name for name in medmnist_info() if "3d" not in name)
ROWS = [row for name in references.MEDMNIST for row in medmnist_references(name)]
LATER = {"organcmnist": (8268, 8216), "organsmnist": (8829, 8827)}  # test images then and today


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row.model}, {row.init}")
def test_each_row_says_what_its_scores_mean(row):
    assert row.model and row.init and row.source
    assert row.pixels in (references.TRUE_224, references.UPSAMPLED_28, "none")
    assert row.selected_on and row.selected_on in row.label.replace(
        "selection", references.NOT_STATED
    )
    assert isinstance(row.seeds, int) or row.seeds in (references.NOT_STATED, "none")
    for metric, scores in row.scores.items():
        assert metric in ("acc", "auc")
        assert set(scores) <= set(TASKS) and set(scores) <= set(row.test_n)
        assert all(10 < value < 100 for value in scores.values())
    for metric, spreads in row.sd.items():
        assert set(spreads) <= set(row.scores[metric])
    assert not row.which or set(row.which) == set(row.scores["acc"])


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row.model}, {row.init}")
def test_the_test_sets_are_the_official_ones(row):
    for task, n in row.test_n.items():
        official = medmnist_info()[task]["n_samples"]["test"]
        assert n == official or (n, official) == LATER[task]


@pytest.mark.parametrize(
    "row", [row for row in ROWS if row.mean], ids=lambda row: f"{row.model}, {row.init}"
)
def test_a_published_mean_is_that_of_its_row(row):
    for metric, published in row.mean.items():
        scores = row.scores[metric]
        assert set(scores) == set(TASKS)
        # half a unit of the mean's last digit, and of rounded scores another half of theirs
        assert abs(np.mean(list(scores.values())) - published) < 0.005 + 0.005


def test_accuracies_are_whole_numbers_of_images():
    """One run's accuracy on n images, two decimals cut off or rounded, is k/n; few typing errors are."""
    for row in (*medmnist_references("thesis")[:5], *medmnist_references("trivial")):
        for task in ("octmnist", "pneumoniamnist", "retinamnist", "breastmnist"):
            percent = row.scores["acc"][task]
            step = 100 / row.test_n[task]
            near = round(percent / step + 0.005 / step) * step
            assert -0.00501 < near - percent < 0.01, (row.model, task)


def test_the_best_of_the_benchmark_is_no_worse_than_its_models():
    *models, best = medmnist_references("medmnist_plus")
    for task, value in best.scores["acc"].items():
        for row in models:
            assert value >= row.scores["acc"][task]
            assert (row.model == best.which[task]) == (value == row.scores["acc"][task])


def test_tables_repeat_one_another():
    tables = imagenet_tables()
    assert list(tables) == ["4.2", "4.3", "4.4", "4.6", "4.7", "4.8", "4.9", "4.10"]
    for table in tables.values():
        assert table.title and all(len(row) == len(table.columns) for row in table.rows.values())
    ablations, scarce = tables["4.2"].rows, tables["4.4"].rows
    assert tables["4.3"].rows["custom"] == ablations["DoGNeXt (strided d2)"]
    assert scarce["DoGNeXt"][:2] == ablations["DoGNeXt (strided d2)"]
    assert scarce["ConvNeXt V2"][:2] == ablations["ConvNeXt V2"]
    assert tables["4.7"].rows["DoGNeXt K9"] == tables["4.6"].rows["DoGNeXt K9"]


def test_the_tables_differences_are_theirs():
    """Sums the thesis prints beside its tables: gains of scale augmentation at 64 and 448 px."""
    vanilla, augmented = imagenet_tables()["4.6"].rows, imagenet_tables()["4.8"].rows
    for model, first, last in (("DoGNeXt K9", 26.20, 2.13), ("ConvNeXt V2", 28.33, 2.56)):
        gain = np.subtract(augmented[model], vanilla[model])
        assert (gain[0], gain[-1]) == pytest.approx((first, last), abs=0.0101)


def test_an_unknown_source_is_refused_with_the_nearest():
    with pytest.raises(ConfigError, match="did you mean 'thesis'"):
        medmnist_references("theses")
