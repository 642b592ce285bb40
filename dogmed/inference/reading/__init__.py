"""From files of any kind to pictures as in training."""
