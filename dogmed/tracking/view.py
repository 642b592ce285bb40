"""The page of MLflow's UI that compares an experiment's runs: grouped, with the charts that matter.

MLflow keeps the state of a page that someone shares in a tag of the experiment; ours is put there.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from dogmed.tracking.entries import KIND_TAG

if TYPE_CHECKING:
    from mlflow import MlflowClient

SHARED = "mlflow.sharedViewState."
KEY = "dogmed"
GROUPS = ("task", "model", "init", "size", "source", "train_fraction", "label")
BARS = ("test_auc", "test_acc")
LINES = ("val_auc", "val_acc", "val_loss", "train_loss")
MOST_RUNS = 1000  # looked at to find what differs


def find_comparison(client: MlflowClient) -> str | None:
    """The experiment to open: that of the newest benchmark, else that of the newest run; or None."""
    experiments = [e.experiment_id for e in client.search_experiments()]
    for wanted in (f"tags.`{KIND_TAG}` = 'benchmark'", ""):
        runs = client.search_runs(
            experiments, wanted, order_by=["attributes.start_time DESC"], max_results=1
        )
        if runs:
            return str(runs[0].info.experiment_id)
    return None


def share_comparison(client: MlflowClient, experiment_id: str) -> str:
    """Have the store keep our page of an experiment; returns the query of its address.

    Runs that differ only by seed are one group, shown by their mean.
    """
    runs = client.search_runs([experiment_id], "tags.model != ''", max_results=MOST_RUNS)
    state = json.dumps(_state(_telling([run.data.tags for run in runs])))
    tags = client.get_experiment(experiment_id).tags
    if tags.get(SHARED + KEY) != state:
        client.set_experiment_tag(experiment_id, SHARED + KEY, state)
    return f"workflowType=machine_learning&compareRunsMode=CHART&viewStateShareKey={quote(KEY)}"


def _telling(runs: list[dict[str, str]]) -> list[str]:
    """The tags that tell groups of runs apart, without those that the others imply."""
    told: list[str] = []
    for name in GROUPS:
        before = {tuple(tags.get(n, "") for n in told) for tags in runs}
        after = {tuple(tags.get(n, "") for n in (*told, name)) for tags in runs}
        if len(after) > len(before):
            told.append(name)
    return told or ["model"]


def _state(groups: list[str]) -> dict[str, Any]:
    """The page's state, in MLflow's own terms (3.17)."""
    test, training = "dogmed-test", "dogmed-training"
    sections = [
        {"uuid": test, "name": "Test, mean of each group"},
        {"uuid": training, "name": "Training, mean of each group"},
    ]
    layout = {"display": True, "isReordered": False, "columns": 2, "cardHeight": 360}
    common: dict[str, Any] = {"isGenerated": False, "deleted": False}
    bars: list[dict[str, Any]] = [
        {"type": "BAR", "uuid": f"dogmed-{name}", "metricSectionId": test, "metricKey": name}
        for name in BARS
    ]
    lines: list[dict[str, Any]] = [
        {
            "type": "LINE",
            "uuid": f"dogmed-{name}",
            "metricSectionId": training,
            "metricKey": name,
            "selectedMetricKeys": [name],
            "scaleType": "linear",
            "xAxisKey": "step",
            "xAxisScaleType": "linear",
            "selectedXAxisMetricKey": "",
            "lineSmoothness": 0,
            "range": {},
            "yAxisKey": "metric",
            "yAxisExpressions": [],
        }
        for name in LINES
    ]
    return {
        "searchFilter": "tags.model != ''",  # leaves out the runs that others are nested under
        "orderByKey": "metrics.`test_auc`",
        "orderByAsc": False,
        "startTime": "ALL",
        "lifecycleFilter": "Active",
        "modelVersionFilter": "All Runs",
        "datasetsFilter": [],
        "groupBy": {
            "aggregateFunction": "average",
            "groupByKeys": [{"mode": "tag", "groupByData": name} for name in groups],
        },
        "compareRunCharts": [common | chart for chart in (*bars, *lines)],
        "compareRunSections": [layout | section for section in sections],
        "runsHiddenMode": "SHOWALL",
        "useGroupedValuesInCharts": True,
        "viewMaximized": False,
        "runListHidden": False,
    }
