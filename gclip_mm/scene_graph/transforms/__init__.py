"""Transforms that keep relations right. Importing this registers them with MMDetection."""

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
