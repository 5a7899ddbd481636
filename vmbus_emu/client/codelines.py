"""How many lines of code a file has: those with a token of the language. Blank lines, comments and docstrings (texts
that stand alone as a statement) are none."""

from __future__ import annotations

import tokenize
from collections.abc import Iterable
from functools import cache

_LAYOUT = frozenset((
    tokenize.ENCODING, tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT,
    tokenize.ENDMARKER,
))  # fmt: skip


@cache
def code_lines(path: str) -> int | None:
    """Lines of a Python file; ``None`` if it is none, or cannot be read: compiled code has no lines."""
    if not path.endswith(".py"):
        return None
    try:
        with open(path, "rb") as file:
            return count(tokenize.tokenize(file.readline))
    except (OSError, SyntaxError, ValueError, tokenize.TokenError):
        return None


def count(tokens: Iterable[tokenize.TokenInfo]) -> int:
    """Lines of code in the tokens of a file."""
    lines: set[int] = set()
    statement: set[int] = set()
    only_text = True
    for token in tokens:
        if token.type == tokenize.NEWLINE:
            if not only_text:
                lines |= statement
            statement, only_text = set(), True
        elif token.type not in _LAYOUT:
            statement.update(range(token.start[0], token.end[0] + 1))
            only_text = only_text and token.type == tokenize.STRING
    return len(lines)
