"""Weights as records: what a file says of itself, the store of named weights, and its commands.

What handles the tensors themselves is ``dogmed.models.weights``: nothing here needs PyTorch until
tensors are read.
"""
