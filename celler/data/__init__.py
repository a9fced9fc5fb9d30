"""Data: an AnnData becomes tokens."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "_augmentation": ["draw_cells", "n_rehearsed"],
        "_genes": ["GeneAlignment"],
        "_profile": ["Profile"],
        "_tokenizer": ["TokenBatch", "TokenBatches", "Tokenizer"],
    },
)
