"""The model class users meet."""

from celler.model.celler import Celler

__all__ = ["Celler"]
