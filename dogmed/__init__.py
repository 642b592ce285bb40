"""dogmed: medical image classification with DoGNeXt and ConvNeXt V2 on MedMNIST."""

__version__ = "0.1.0"
