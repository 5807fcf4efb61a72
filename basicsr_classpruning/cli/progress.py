"""Progress bars of work that has several stages."""

from __future__ import annotations

from typing import Any

from tqdm import tqdm


class StageBar:
    """Shows one bar for each stage of the work; call it with the stage's name, what is done and the total."""

    def __init__(self) -> None:
        self._bar: Any = None
        self._stage = ''

    def __enter__(self) -> StageBar:
        return self

    def __exit__(self, *_: object) -> None:
        self._close()

    def __call__(self, stage: str, done: int, total: int) -> None:
        if stage != self._stage or done < self._bar.n:
            self._close()
            self._stage = stage
            self._bar = tqdm(total=total, desc=stage, unit='')
        self._bar.update(done - self._bar.n)

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.close()
