"""``dogmed report``: what the runs say, with what is noise and what is not."""
