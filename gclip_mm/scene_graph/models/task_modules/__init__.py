"""Pair sampling, pair geometry and duplicate removal."""

from .geometry import box_geometry, pair_geometry, pair_masks, union_boxes
from .graph_nms import refined_nms
from .pair_sampler import PairSampler, all_pairs, candidate_pairs, match_objects

__all__ = [
    'PairSampler',
    'all_pairs',
    'box_geometry',
    'candidate_pairs',
    'match_objects',
    'pair_geometry',
    'pair_masks',
    'refined_nms',
    'union_boxes',
]
