"""Tables of result files in the documentation."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path


def markdown(header: list[str], rows: list[list[str]]) -> str:
    """A Markdown table."""
    lines = [header, ['---'] * len(header), *rows]
    return '\n'.join('| ' + ' | '.join(line) + ' |' for line in lines)


def write_blocks(page: Path, blocks: Mapping[str, str]) -> None:
    """Replaces what stands between ``<!-- NAME -->`` and the next ``<!-- end -->`` in a page."""
    text = page.read_text()
    for name, block in blocks.items():
        whole = f'<!-- {name} -->\n{block}\n<!-- end -->'
        text = re.sub(rf'<!-- {name} -->.*?<!-- end -->', lambda _, whole=whole: whole, text, flags=re.S)
    page.write_text(text)
