"""Trained models at many resolutions and kernel sizes."""
