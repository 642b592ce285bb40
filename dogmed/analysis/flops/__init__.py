"""A trained model's accuracy against FLOPs."""
