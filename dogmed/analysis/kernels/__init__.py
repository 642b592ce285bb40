"""The kernels of trained models."""
