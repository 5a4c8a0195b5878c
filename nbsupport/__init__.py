"""Decision boundary analysis of adversarial examples: the kernels behind the notebooks."""

__version__ = "0.1.0"
