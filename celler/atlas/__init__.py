"""Atlas: corpora of millions of cells on disk, built once from many files and read a minibatch at a time."""

from typing import TYPE_CHECKING

import lazy_loader

# Loaded on first use: building must not wait for, nor hold, what training needs.
__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "building": ["build"],
        "datamodule": ["DataModule"],
        "settings": ["Storage"],
        "summarising": ["Summary", "summary"],
    },
)

if TYPE_CHECKING:
    from celler.atlas.building import build as build
    from celler.atlas.datamodule import DataModule as DataModule
    from celler.atlas.settings import Storage as Storage
    from celler.atlas.summarising import Summary as Summary
    from celler.atlas.summarising import summary as summary
