"""Celler: cell-type annotation for single-cell data whose rare types matter."""

from typing import TYPE_CHECKING

import lazy_loader

from celler._utils._cache_folder import provide_cache_folder

provide_cache_folder()  # before anything imports numba
# Loaded on first use: `celler --help` must not wait for torch and scvi-tools.
__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submodules=["atlas", "benchmark", "datasets", "labels", "losses", "metrics", "mining", "model", "pl", "pp", "tl"],
    submod_attrs={"_utils._version": ["__version__"]},
)

if TYPE_CHECKING:
    from celler import atlas as atlas
    from celler import benchmark as benchmark
    from celler import datasets as datasets
    from celler import labels as labels
    from celler import losses as losses
    from celler import metrics as metrics
    from celler import mining as mining
    from celler import model as model
    from celler import pl as pl
    from celler import pp as pp
    from celler import tl as tl
    from celler._utils._version import __version__ as __version__
