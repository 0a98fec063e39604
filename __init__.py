"""chan_rt: CHAN image-text matching from a PyTorch checkpoint to a small, fast and proven runtime."""

__version__ = "0.1.0"
