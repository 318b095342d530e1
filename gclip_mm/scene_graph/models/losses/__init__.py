"""Losses of the predicates."""

from .count_weighted_cross_entropy import CountWeightedCrossEntropy

__all__ = ['CountWeightedCrossEntropy']
