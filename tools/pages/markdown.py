"""Markdown tables, and the places in a page that are generated."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown."""
    lines = [header, ['---'] * len(header), *rows]
    return '\n'.join('| ' + ' | '.join(line) + ' |' for line in lines)


def write_blocks(page: Path, blocks: Mapping[str, str]) -> None:
    """Replaces what stands in a page between each ``<!-- NAME -->`` and the next ``<!-- end -->``."""
    text = page.read_text(encoding='utf-8')
    for name, block in blocks.items():
        text = _replaced(text, name, block)
    page.write_text(text, encoding='utf-8')


def _replaced(text: str, name: str, block: str) -> str:
    whole = f'<!-- {name} -->\n{block}\n<!-- end -->'
    text, found = re.subn(rf'<!-- {name} -->.*?<!-- end -->', lambda _: whole, text, flags=re.S)
    if not found:
        raise ValueError(f'there is no place <!-- {name} --> … <!-- end -->')
    return text
