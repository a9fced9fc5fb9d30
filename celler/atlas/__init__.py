"""Atlas: corpora of millions of cells on disk, built once from many files and read a minibatch at a time."""

from typing import TYPE_CHECKING

import lazy_loader

# Loaded on first use: building must not wait for, nor hold, what training needs.
__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "_build": ["build"],
        "_datamodule": ["DataModule"],
        "_options": ["Storage"],
        "_summary": ["Summary", "summary"],
    },
)

if TYPE_CHECKING:
    from celler.atlas._build import build as build
    from celler.atlas._datamodule import DataModule as DataModule
    from celler.atlas._options import Storage as Storage
    from celler.atlas._summary import Summary as Summary
    from celler.atlas._summary import summary as summary
