"""Pictures of a study, in one HTML file that needs nothing else."""

from __future__ import annotations

import html
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import TrialState
from optuna.visualization import (
    plot_optimization_history,
    plot_param_importances,
    plot_slice,
)

from dogmed.runs import write_atomic

PAGE = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>{title}</title>
<style>body {{ font: 16px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 70rem;
padding: 0 1rem }}</style></head>
<body><h1>{title}</h1>
<p>Val AUC of {count} finished trials; test was not read. The best of many is an optimistic figure.</p>
{figures}
</body></html>
"""


def draw(study: optuna.Study, path: Path) -> Path | None:
    """Draw the history, the importance of the options and a slice of each; with fewer than two
    finished trials there is nothing to draw."""
    complete = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    if len(complete) < 2:
        return None
    name = "val AUC"
    figures: list[Any] = [plot_optimization_history(study, target_name=name)]
    if len({trial.value for trial in complete}) > 1:
        figures.append(plot_param_importances(study, target_name=name))
    figures.append(plot_slice(study, target_name=name))
    parts = [
        figure.to_html(full_html=False, include_plotlyjs=number == 0)
        for number, figure in enumerate(figures)
    ]
    title = html.escape(f"Study {study.study_name}")
    write_atomic(path, PAGE.format(title=title, count=len(complete), figures="\n".join(parts)))
    return path
