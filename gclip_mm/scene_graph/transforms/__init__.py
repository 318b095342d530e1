"""Transforms that keep relations consistent, registered with MMDetection on import."""

from .boxes import SceneGraphBoxes
from .flips import PredicateFlips
from .formatting import PackSceneGraphInputs
from .graph import RelationGraph
from .loading import LoadSceneGraphAnnotations
from .sampling import SamplePredicatePerPair

__all__ = [
    'LoadSceneGraphAnnotations',
    'PackSceneGraphInputs',
    'PredicateFlips',
    'RelationGraph',
    'SamplePredicatePerPair',
    'SceneGraphBoxes',
]
