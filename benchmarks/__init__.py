"""What dogmed's speed and memory are measured with: ``python -m benchmarks --help``."""
