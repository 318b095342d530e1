"""A rule on a command line: ``type=AGC,clip_factor=0.01``."""

from __future__ import annotations

import ast
from typing import Any

from ..checks import ClipConfigError


def parse_inline(text: str) -> dict[str, Any]:
    """``type=AGC,clip_factor=0.01,exclude=[fc_cls]`` as a dict.

    A value is a Python literal; any other text is a string.

    Raises:
        ClipConfigError: an item that is not of the form ``key=value``.
    """
    result: dict[str, Any] = {}
    for item in _split(text):
        key, equals, value = item.partition('=')
        if not equals or not key.strip().isidentifier():
            raise ClipConfigError(
                f'recipe {text!r}: {item!r} is not of the form key=value, such as '
                "'type=AGC,clip_factor=0.01'"
            )
        result[key.strip()] = _value(value.strip())
    return result


def _split(text: str) -> list[str]:
    """Split at the commas outside brackets and quotes."""
    items, depth, quote = [''], 0, ''
    for char in text:
        if quote:
            quote = '' if char == quote else quote
        elif char in '\'"':
            quote = char
        elif char in '([{':
            depth += 1
        elif char in ')]}':
            depth -= 1
        elif char == ',' and depth == 0:
            items.append('')
            continue
        items[-1] += char
    return items


def _value(text: str) -> Any:
    try:
        return _literal(ast.parse(text, mode='eval').body)
    except (ValueError, SyntaxError):
        pass
    if text[:1] == '[' and text[-1:] == ']':
        return [_value(item.strip()) for item in _split(text[1:-1]) if item.strip()]
    # Spellings of shells and YAML.
    return {'true': True, 'false': False, 'none': None}.get(text.lower(), text)


def _literal(node: ast.expr) -> Any:
    """The value of a Python literal; calls such as ``dict(type='linear', end=500)`` are allowed.

    Raises:
        ValueError: the expression is not a literal.
    """
    if isinstance(node, ast.Call) and getattr(node.func, 'id', '') == 'dict':
        names = [item.arg for item in node.keywords]
        if not node.args and all(names):
            return {item.arg: _literal(item.value) for item in node.keywords}
    if isinstance(node, ast.List):
        return [_literal(item) for item in node.elts]
    return ast.literal_eval(node)
