"""Inference: outputs of the network become labels."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__, submod_attrs={"_calibration": ["Decision"], "_novelty": ["Novelty"], "_outputs": ["Outputs"]}
)
