"""MLflow: the runs of this project, and the web page that compares them.

By default everything lives under ``--out``: an sqlite file and a folder of artifacts. A remote
server or a database is named by ``MLFLOW_TRACKING_URI``. Local files are the truth and MLflow is a
copy of it: a store that fails costs one warning and a short wait, never the training, and
``dogmed sync`` mends it. mlflow is imported in this folder and nowhere else, on first use.
"""

from dogmed.tracking.entries import PARENT_TAG
from dogmed.tracking.ledger import Ledger
from dogmed.tracking.mending import mend
from dogmed.tracking.registry import promote
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

__all__ = [
    "ENVIRONMENT",
    "PARENT_TAG",
    "Ledger",
    "NoRun",
    "Run",
    "default_uri",
    "is_server",
    "mend",
    "open_store",
    "promote",
    "quiet",
    "shown",
    "store_errors",
]
