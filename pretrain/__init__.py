"""ImageNet-1K pretraining. This package holds no pipeline yet: see the README, "What is not here yet"."""

if not __name__.startswith("dogmed."):
    raise ImportError("import this package as dogmed.pretrain, not as pretrain")
