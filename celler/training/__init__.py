"""Training: minibatches become weights."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__, submod_attrs={"_plan": ["PretrainingConfig", "Teacher", "TrainingConfig"]}
)
