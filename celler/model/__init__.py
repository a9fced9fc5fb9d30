"""The model class users meet."""

from celler.model._celler import Celler

__all__ = ["Celler"]
