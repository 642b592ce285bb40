"""MLflow: the runs of this project, and the web page that compares them.

By default everything lives under ``--out``: an sqlite file and a folder of artifacts. A remote
server or a database is named by ``MLFLOW_TRACKING_URI``. Local files are the truth and MLflow is a
copy of it: a store that fails costs one warning and a short wait, never the training, and
``dogmed sync`` mends it. mlflow is imported in this folder and nowhere else, on first use.
"""

from dogmed.tracking.entries import KIND_TAG, PARENT_TAG
from dogmed.tracking.ledger import Ledger
from dogmed.tracking.mending import close_dead, mend
from dogmed.tracking.registry import promote, promote_files
from dogmed.tracking.run import NoRun, Run
from dogmed.tracking.store import (
    ENVIRONMENT,
    default_uri,
    is_server,
    open_store,
    quiet,
    shown,
    store_errors,
)
from dogmed.tracking.view import find_comparison, share_comparison
from dogmed.tracking.weights import weights_of_run

__all__ = [
    "ENVIRONMENT",
    "KIND_TAG",
    "PARENT_TAG",
    "Ledger",
    "NoRun",
    "Run",
    "close_dead",
    "default_uri",
    "find_comparison",
    "is_server",
    "mend",
    "open_store",
    "promote",
    "promote_files",
    "quiet",
    "share_comparison",
    "shown",
    "store_errors",
    "weights_of_run",
]
