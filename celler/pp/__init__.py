"""Preprocessing: check expression values, align genes."""

from celler.data._genes import GeneAlignment
from celler.pp._align_genes import align_genes
from celler.pp._check_input import InputReport, check_input

__all__ = ["GeneAlignment", "InputReport", "align_genes", "check_input"]
