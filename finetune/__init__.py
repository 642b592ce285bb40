"""Fine-tuning on MedMNIST tasks: the MONAI harness."""

if not __name__.startswith("dogmed."):
    raise ImportError("import this package as dogmed.finetune, not as finetune")

from dogmed.tracking import quiet

quiet()  # MONAI imports MLflow as it loads: its settings must be there before
