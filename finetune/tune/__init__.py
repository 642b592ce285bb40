"""``dogmed tune``: Optuna finds the options of a task, by its validation scores alone."""
