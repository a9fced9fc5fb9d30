"""Atlas: corpora of millions of cells on disk, built once from many files and read a minibatch at a time."""

from typing import TYPE_CHECKING

import lazy_loader

# Loaded on first use: building must not wait for, nor hold, what training needs.
__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "datamodule": ["DataModule"],
    },
)

if TYPE_CHECKING:
    from celler.atlas.datamodule import DataModule as DataModule
