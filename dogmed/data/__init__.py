"""Data: the tasks, their preparation into memory-mapped arrays, and batches on the device."""

from __future__ import annotations

from dogmed.data.store import Plan, Prepared, plan, prepare
from dogmed.data.tasks import Task, evaluator_task, get_task, official_tasks

__all__ = [
    "Plan",
    "Prepared",
    "Task",
    "evaluator_task",
    "get_task",
    "official_tasks",
    "plan",
    "prepare",
]
