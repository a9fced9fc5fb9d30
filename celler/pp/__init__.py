"""Preprocessing: what an AnnData's values are, and its genes under a reference's names."""

from celler.genes import GeneAlignment
from celler.pp.alignment import align_genes
from celler.pp.state import InputReport, check_input

__all__ = ["GeneAlignment", "InputReport", "align_genes", "check_input"]
