"""``dogmed benchmark``: every cell of a matrix of runs, once."""
