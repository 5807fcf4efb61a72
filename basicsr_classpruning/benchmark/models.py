"""The networks of a benchmark, and how their tiles are run and timed."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from basicsr_classpruning.benchmark.rivals import Conditions, make_rivals
from basicsr_classpruning.devices import device_of
from basicsr_classpruning.inference.engines import Engine, Engines
from basicsr_classpruning.inference.receptive_field import tile_margin
from basicsr_classpruning.inference.restorer import check_channels
from basicsr_classpruning.inference.tiling import Blender, TileGrid, plan_tiles
from basicsr_classpruning.inference.timing import settle
from basicsr_classpruning.routing.network import ModelInfo, RoutedNetwork


@dataclass(frozen=True)
class Variant:
    """One way to run a network's tiles."""

    name: str
    """The candidate; for a dense network the engine."""
    macs: float
    """Per input pixel, without the classifier."""
    run: Engine


@dataclass
class BenchmarkModel:
    """A network with all the ways in which it is run. The candidates come first, in their order."""

    name: str
    network: RoutedNetwork
    margin: int | None
    """See ``tile_margin``."""
    variants: list[Variant]
    missing: dict[str, str] = field(default_factory=dict)
    """Engines that could not be had, with the reason."""

    @property
    def info(self) -> ModelInfo:
        """What is known of the network."""
        return self.network.info

    @property
    def candidates(self) -> int:
        """Number of candidates; 0 for a dense network."""
        return len(self.network.candidates)

    @property
    def has_engines(self) -> bool:
        """Whether other engines run the dense network too."""
        return len(self.variants) > max(self.candidates, 1)

    def predicted_errors(self, x: Tensor) -> Tensor:
        """``(B, K)``. Only of a network with candidates."""
        assert self.network.router is not None
        with torch.inference_mode():
            return self.network.router.predicted_errors(x)


def make_model(name: str, network: RoutedNetwork, overlap: int, backend: str) -> BenchmarkModel:
    """Gets a network ready for a benchmark, on the device that it is on.

    Raises UserError for a network that takes neither grey nor RGB images.
    """
    check_channels(network)
    engines = Engines(network, backend)
    names = network.candidates or (backend,)
    variants = [Variant(label, network.info.macs[index], engines[index]) for index, label in enumerate(names)]
    return BenchmarkModel(name, network, tile_margin(network.dense, overlap), variants)


def add_engines(model: BenchmarkModel, conditions: Conditions, progress: Callable[[int, int], object]) -> None:
    """Adds what else the dense base network can be run with on a CPU; see `make_rivals` for the arguments."""
    found, model.missing = make_rivals(conditions, progress)
    model.variants += [Variant(name, model.info.macs_dense, engine) for name, engine in found.items()]


def missing_engines(models: Sequence[BenchmarkModel]) -> dict[str, str]:
    """Why engines are missing, by name; where some of the models have it, those that lack it are named."""
    asked = [model for model in models if model.has_engines or model.missing]
    missing: dict[str, str] = {}
    for name in dict.fromkeys(name for model in asked for name in model.missing):
        lacking = {model.name: model.missing[name] for model in asked if name in model.missing}
        if len(lacking) == len(asked) and len(set(lacking.values())) == 1:
            missing[name] = next(iter(lacking.values()))
        else:
            missing[name] = '; '.join(f'{reason} ({model})' for model, reason in lacking.items())
    return missing


class TiledImage:
    """A degraded image cut into a model's tiles, with the times that were measured on them.

    Tiles run one at a time: what any choice of candidates takes is then the sum of its tiles' times. All ways to run a
    tile take turns on it, so that another program's load meets all of them.
    """

    def __init__(self, model: BenchmarkModel, image: np.ndarray, tile: int, overlap: int) -> None:
        self._model, self._channels = model, image.shape[2]
        self.grid: TileGrid = plan_tiles(image.shape[0], image.shape[1], tile, overlap, model.info.sizes)
        self._top = 1.0 if np.issubdtype(image.dtype, np.floating) else float(np.iinfo(image.dtype).max)
        self._image = image
        self._device = device_of(model.network.module)

    @property
    def pixels(self) -> int:
        """Input pixels of one tile."""
        return self.grid.tile_size[0] * self.grid.tile_size[1]

    def tile(self, number: int) -> Tensor:
        """One tile as the network wants it, ``(1, C, h, w)``."""
        tile = self.grid.cut(self._image, number).transpose(2, 0, 1)[None]
        return torch.from_numpy(tile.astype(np.float32)).div_(self._top).to(self._device)

    def measure(self, variants: list[int], repeats: int) -> tuple[dict[int, np.ndarray], np.ndarray]:
        """Runs all tiles in several ways.

        Returns:
            The outputs of each variant ``(T, C, h * scale, w * scale)``, and the seconds
            ``(repeats, all variants, T)``, infinite for variants that did not run.
        """
        outputs: dict[int, list[np.ndarray]] = {variant: [] for variant in variants}
        seconds = np.full((repeats, len(self._model.variants), len(self.grid)), np.inf)
        others = self._model.has_engines and torch.get_num_threads() > 1
        for number in range(len(self.grid)):
            x = self.tile(number)
            for repeat in range(repeats):
                for variant in variants:
                    if others:
                        settle()
                    y, elapsed = self._timed(self._model.variants[variant].run, x)
                    seconds[repeat, variant, number] = elapsed
                    if repeat == 0:
                        outputs[variant].append(y.float().cpu().numpy()[0])
        return {variant: np.stack(tiles) for variant, tiles in outputs.items()}, seconds

    def predict(self, repeats: int) -> tuple[np.ndarray, np.ndarray]:
        """Predicted errors ``(T, K)`` and the classifier's seconds ``(T,)``, medians."""
        errors, seconds = [], np.zeros((repeats, len(self.grid)))
        for number in range(len(self.grid)):
            x = self.tile(number)
            for repeat in range(repeats):
                found, seconds[repeat, number] = self._timed(self._model.predicted_errors, x)
            errors.append(found.float().cpu().numpy()[0])
        return np.stack(errors), np.median(seconds, axis=0)

    def warm_up(self, variants: list[int]) -> None:
        """Runs one tile in every way, unmeasured: kernels are chosen and graphs compiled at the first call."""
        x = self.tile(0)
        for variant in variants:
            self._timed(self._model.variants[variant].run, x)
        if self._model.candidates:
            self._timed(self._model.predicted_errors, x)

    def blend(self, outputs: dict[int, np.ndarray], choice: np.ndarray) -> np.ndarray:
        """The image ``(H, W, C)`` uint8 in which tile t is the output of variant ``choice[t]``."""
        blender = Blender(self.grid, self._model.info.scale, self._channels, self._model.margin)
        columns = len(self.grid.cols.starts)
        bands = []
        for row in range(len(self.grid.rows.starts)):
            for column in range(columns):
                number = row * columns + column
                blender.add(column, outputs[int(choice[number])][number])
            bands += [np.rint(band.clip(0, 1) * 255).astype(np.uint8) for band in blender.finish_row()]
        return np.concatenate(bands)

    def squared_errors(self, tiles: np.ndarray, truth: np.ndarray) -> np.ndarray:
        """Each tile's part in the image's squared error, ``(T,)``.

        Pixels count by the tile's weight in the blended image.

        Args:
            tiles: outputs ``(T, C, h * scale, w * scale)`` in [0, 1].
            truth: ``(H, W, C)`` uint8.
        """
        scale = self._model.info.scale
        errors = np.zeros(len(self.grid))
        for number, tile in enumerate(tiles):
            top, left = (scale * start for start in self.grid.corner(number))
            part = truth[top : top + tile.shape[1], left : left + tile.shape[2]].transpose(2, 0, 1) / np.float32(255)
            height, width = part.shape[1:]  # without what was padded
            error = np.square(tile[:, :height, :width].clip(0, 1) - part).sum(axis=0)
            errors[number] = self.weighted_sum(number, error)
        return errors

    def weighted_sum(self, number: int, values: np.ndarray) -> float:
        """Sum over a tile's output pixels ``(h, w)``, each counted by the tile's weight in the blended image.

        What was padded does not count, and may be left out.
        """
        scale, margin = self._model.info.scale, self._model.margin
        row, col = divmod(number, len(self.grid.cols.starts))
        top, left = self.grid.corner(number)
        height, width = ((side - start) * scale for side, start in zip(self._image.shape, (top, left)))
        values = values[:height, :width]
        down = self.grid.rows.weights(row, scale, margin)[: values.shape[0]]
        across = self.grid.cols.weights(col, scale, margin)[: values.shape[1]]
        return float(down @ values @ across)

    def _timed(self, run: Callable[[Tensor], Tensor], x: Tensor) -> tuple[Tensor, float]:
        start = time.perf_counter()
        y = run(x)
        if self._device.type == 'cuda':
            torch.cuda.synchronize(self._device)
        return y, time.perf_counter() - start
