"""What a scene-graph model is given of the ground truth when it is tested."""

from __future__ import annotations

from enum import Enum


class SceneGraphProtocol(str, Enum):
    """The three protocols of Xu et al., arXiv 1701.02426.

    - ``PREDCLS``: boxes and labels of the objects are given, predicates are predicted.
    - ``SGCLS``: boxes are given, labels and predicates are predicted.
    - ``SGDET``: nothing is given.

    Which objects are related is never given.

    Example:
        >>> SceneGraphProtocol.parse('PredCls') is SceneGraphProtocol.PREDCLS
        True
    """

    PREDCLS = 'predcls'
    SGCLS = 'sgcls'
    SGDET = 'sgdet'

    @property
    def has_boxes(self) -> bool:
        """Whether the boxes are given."""
        return self is not SceneGraphProtocol.SGDET

    @property
    def has_labels(self) -> bool:
        """Whether the object labels are given."""
        return self is SceneGraphProtocol.PREDCLS

    @classmethod
    def parse(cls, value: str | SceneGraphProtocol) -> SceneGraphProtocol:
        """Read a protocol in any letter case.

        Raises:
            ValueError: ``value`` is none of the three; names them.
        """
        try:
            return cls(value.lower() if isinstance(value, str) else value)
        except ValueError:
            valid = ', '.join(repr(p.value) for p in cls)
            raise ValueError(f'protocol must be one of {valid}, got {value!r}') from None
