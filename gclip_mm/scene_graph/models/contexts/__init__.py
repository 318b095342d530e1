"""Contexts: modules that pass information between objects and pairs of an image."""

from .base import BaseContext
from .crnn_context import CRNNContext
from .identity_context import IdentityContext
from .imp_context import IMPContext
from .rnn_context import RNNContext
from .transformer_context import TransformerContext

__all__ = [
    'BaseContext',
    'CRNNContext',
    'IMPContext',
    'IdentityContext',
    'RNNContext',
    'TransformerContext',
]
