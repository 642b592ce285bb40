"""Experiments on trained models, after the thesis's chapter 4: scale, FLOPs, kernels; and how they bear
corrupted images.

This room imports the core and, to read ImageNet, pretraining's readers; nothing imports it.
"""
