"""How much of a score, or of a difference between scores, is chance.

- ``bootstrap``: one run's scores over the test images.
- ``seeds``: what other training seeds would have given.
- ``compare``: several seeds on one test set, and two models on the same one.
- ``tasks``: models over several tasks: Wilcoxon, Friedman, Holm, ranks and critical difference.
- ``verdicts``: what may be said of a difference.
"""

from dogmed.stats.bootstrap import bootstrap_intervals, bootstrap_replicates
from dogmed.stats.compare import (
    Difference,
    Estimate,
    McNemar,
    Resampled,
    differences,
    estimates,
    mcnemar,
    resample,
    trivial_answer,
    trivial_probabilities,
    within_range,
)
from dogmed.stats.seeds import SeedSummary, summarize, t_interval
from dogmed.stats.tasks import (
    Friedman,
    Wilcoxon,
    average_ranks,
    critical_difference,
    friedman,
    groups,
    holm,
    wilcoxon,
)
from dogmed.stats.verdicts import ALPHA, resamples_for, verdict

__all__ = [
    "ALPHA",
    "Difference",
    "Estimate",
    "Friedman",
    "McNemar",
    "Resampled",
    "SeedSummary",
    "Wilcoxon",
    "average_ranks",
    "bootstrap_intervals",
    "bootstrap_replicates",
    "critical_difference",
    "differences",
    "estimates",
    "friedman",
    "groups",
    "holm",
    "mcnemar",
    "resample",
    "resamples_for",
    "summarize",
    "t_interval",
    "trivial_answer",
    "trivial_probabilities",
    "verdict",
    "wilcoxon",
    "within_range",
]
