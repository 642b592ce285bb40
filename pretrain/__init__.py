"""ImageNet-1K pretraining: the weights that fine-tuning starts from."""

if not __name__.startswith("dogmed."):
    raise ImportError("import this package as dogmed.pretrain, not as pretrain")
