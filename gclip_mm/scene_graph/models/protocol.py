"""The protocol of a scene-graph model: the ground truth given at test time."""

from __future__ import annotations

from enum import Enum


class SceneGraphProtocol(str, Enum):
    """The three evaluation protocols of Xu et al., arXiv 1701.02426.

    - ``PREDCLS``: boxes and labels of the objects are given, predicates are predicted.
    - ``SGCLS``: boxes are given, labels and predicates are predicted.
    - ``SGDET``: nothing is given.

    Relations are never given.

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
        """Parse a protocol, ignoring case.

        Raises:
            ValueError: ``value`` is not one of the three; the message lists them.
        """
        try:
            return cls(value.lower() if isinstance(value, str) else value)
        except ValueError:
            valid = ', '.join(repr(p.value) for p in cls)
            raise ValueError(f'protocol must be one of {valid}, got {value!r}') from None
