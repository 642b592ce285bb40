"""Trained models on corrupted images."""
