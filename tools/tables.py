"""Tables of result files in the documentation."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path


def markdown(header: list[str], rows: list[list[str]]) -> str:
    """A Markdown table."""
    lines = [header, ['---'] * len(header), *rows]
    return '\n'.join('| ' + ' | '.join(line) + ' |' for line in lines)


def replace_blocks(text: str, blocks: Mapping[str, str]) -> str:
    """A page's text with other contents between each ``<!-- NAME -->`` and the next ``<!-- end -->``."""
    for name, block in blocks.items():
        whole = f'<!-- {name} -->\n{block}\n<!-- end -->'
        text = re.sub(rf'<!-- {name} -->.*?<!-- end -->', lambda _, whole=whole: whole, text, flags=re.S)
    return text


def write_blocks(page: Path, blocks: Mapping[str, str]) -> None:
    """Replaces blocks in a page."""
    page.write_text(replace_blocks(page.read_text(), blocks))
