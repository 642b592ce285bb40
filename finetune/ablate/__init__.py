"""The variants of the thesis's ablations, as runs of the benchmark."""
