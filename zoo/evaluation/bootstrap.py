"""Is the difference real: 95% intervals of COCO's AP over test images, and verdicts on pairs of detectors.

    boot = bootstrap({"retinanet": [collect_matches(truth, run) for run in runs], "yolov1": [...]})
    boot.interval("retinanet", "AP"), boot.difference("retinanet", "yolov1", "AP50").verdict

Paired bootstrap (Efron and Tibshirani, "An Introduction to the Bootstrap", 1993, chapters 6 and 13): as many images as
there are are drawn with replacement, the same ones for every detector, and everything is measured on them, again and
again. An image that is drawn k times counts k times, it is not matched again (see `zoo.evaluation.matches`).

What a resample is, exactly: the set in which an image drawn k times is there k times under new ids, and in which
equal scores are ranked as in the original set, by its canonical order, so that copies of one detection stay together.
`evaluate` gives the same numbers for that set. A class or size of which nothing was drawn is not measured in that
resample, as in any set without it: it is left out of the mean over classes, and its own figure of that resample is
left out of its interval.

The plain percentile interval misses too often, as measured on simulated detectors whose true AP is known:

- A figure that hangs on few images varies less over resamples than over test sets. The interval is stretched about
  its centre by t / z * sqrt(m / (m - 1)), with m the images that hold an object in question and t Student's quantile
  for m - 1 degrees of freedom, which is Hesterberg's correction ("What Teachers Should Know About the Bootstrap", The
  American Statistician 69, 2015, section 5) as a factor. The AP of a class with objects in two or three images was
  covered in 6 to 8 of 10 trials without it. With objects in one image only there is no interval.
- AP is too high on a small set, since the best precision at a recall or a larger one is a maximum over noise; on a
  resample it is too high once more, by half as much or more. The interval of one AP is moved back by that (the
  bootstrap's bias correction, Efron and Tibshirani, chapter 10), and never leaves out the figure itself: with 100
  images and two or three classes it covers in 90 to 93 of 100 trials, where the percentiles cover in 83 to 91.
- In a difference most of that cancels, but not all, and which way the rest goes cannot be told: its interval takes in
  both the percentiles and the same moved back. They are one where resampling does not shift the difference.

What no interval mends: dozens of classes on a few hundred images, some ten objects each, where AP is too high by
several times its deviation. Differences are then covered in 8 to 10 of 10 trials, but single figures in 3 to 9 only;
`zoo.report.interval_warning` has the table, and tells the reader of a report.

An interval tells how much other test images would have changed the figure, for the weights that were trained.
How much another training would have changed it is the spread over seeds, which stands apart.
A verdict is about one figure of one pair: of twenty ties one in the mean comes out "better" or "worse" by chance.

Legend:
    N  images      C  classes      F  figures: KEYS, then AP of each class      S  seeds      R  resamples
    B  sets of images weighted at once
"""

import math
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int64
from scipy.stats import norm, t  # type: ignore[import-untyped]

from zoo.errors import InputError
from zoo.evaluation.matches import AREA_RANGES, Matches
from zoo.evaluation.reweighting import average_precisions

KEYS = ("AP", "AP50", "AP75", "APs", "APm", "APl")
CONFIDENCE = 0.95
_ROWS_AT_ONCE = 2**17  # of a column, over the sets weighted at once: small enough for a cache, large enough for numpy


class Interval(NamedTuple):
    """A figure in 0..1 with its 95% interval; NaN where there was nothing to measure."""

    value: float
    low: float
    high: float


class Difference(NamedTuple):
    """A figure of the first less that of the second with its 95% interval, and what that says of the first."""

    value: float
    low: float
    high: float
    verdict: Literal["better", "worse", "tie"]  # a tie where the interval holds 0, or where there is none


class SeedSpread(NamedTuple):
    """A figure over the seeds of one configuration; the deviation is that of a sample, NaN for one seed."""

    mean: float
    deviation: float
    low: float
    high: float


@dataclass(frozen=True, eq=False)
class Bootstrap:
    """Figures of all configurations on the test images and on the same resamples of them; `bootstrap` makes it."""

    classes: tuple[str, ...]
    holding_images: Int64[np.ndarray, "F"]  # images that hold an object of the figure's class and size
    values: dict[str, Float[np.ndarray, "S F"]]  # by configuration: as measured, seed by seed
    resampled: dict[str, Float[np.ndarray, "R F"]]  # by configuration: mean over seeds

    @property
    def class_images(self) -> dict[str, int]:
        """Class name -> images that hold an object of it."""
        return dict(zip(self.classes, self.holding_images[len(KEYS) :].tolist(), strict=True))

    def interval(self, config: str, key: str) -> Interval:
        """One of `KEYS` of a configuration, mean over its seeds."""
        return self._interval(config, KEYS.index(key))

    def class_interval(self, config: str, name: str) -> Interval:
        """AP of one class, by the class's name."""
        return self._interval(config, len(KEYS) + self.classes.index(name))

    def difference(self, first: str, second: str, key: str) -> Difference:
        """One of `KEYS` of the first configuration less that of the second, and the verdict on the first."""
        return self._difference(first, second, KEYS.index(key))

    def class_difference(self, first: str, second: str, name: str) -> Difference:
        """AP of one class, by the class's name."""
        return self._difference(first, second, len(KEYS) + self.classes.index(name))

    def seed_spread(self, config: str, key: str) -> SeedSpread:
        """One of `KEYS` over a configuration's seeds."""
        values = self.values[config][:, KEYS.index(key)]
        deviation = float(values.std(ddof=1)) if len(values) > 1 else math.nan
        return SeedSpread(float(values.mean()), deviation, float(values.min()), float(values.max()))

    def _interval(self, config: str, figure: int) -> Interval:
        value = float(self.values[config][:, figure].mean())
        resampled = self.resampled[config][:, figure]
        reach = stretched_interval(resampled, int(self.holding_images[figure]))
        low, high = np.clip(reach - 2 * _drift(resampled, value), 0, 1)
        return Interval(value, float(np.minimum(low, value)), float(np.maximum(high, value)))

    def _difference(self, first: str, second: str, figure: int) -> Difference:
        value = float(self.values[first][:, figure].mean() - self.values[second][:, figure].mean())
        resampled = self.resampled[first][:, figure] - self.resampled[second][:, figure]
        reach = stretched_interval(resampled, int(self.holding_images[figure]))
        both = np.stack([reach, reach - 2 * _drift(resampled, value)])
        low, high = float(both.min()), float(both.max())
        return Difference(value, low, high, "better" if low > 0 else "worse" if high < 0 else "tie")


def stretched_interval(resampled: Float[np.ndarray, "R"], holding_images: int) -> Float[np.ndarray, "2"]:
    """Percentile interval of 95%, stretched about the mean of the resamples for what rests on few images.

    Args:
        resampled: the figure on each resample; NaN where it was not measured.
        holding_images: how many images of the test set hold an object in question.

    Returns:
        low and high; NaN where fewer than two images hold one.
    """
    measured = resampled[~np.isnan(resampled)]
    if holding_images < 2 or len(measured) == 0:
        return np.full(2, np.nan)
    tail = (1 - CONFIDENCE) / 2
    centre = measured.mean()
    stretch = t.isf(tail, holding_images - 1) / norm.isf(tail) * math.sqrt(holding_images / (holding_images - 1))
    return centre + stretch * (np.quantile(measured, [tail, 1 - tail]) - centre)


def _drift(resampled: Float[np.ndarray, "R"], value: float) -> float:
    """How much higher a figure comes out on resamples than on the test images: the bootstrap's estimate of its bias."""
    return float(_mean(resampled[None])[0]) - value


def bootstrap(
    groups: Mapping[str, Sequence[Matches]],
    resamples: int = 1000,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> Bootstrap:
    """Measures runs on the test images and on resamples of them, on as many threads as torch would use.

    Args:
        groups: configuration -> its runs, one a seed; all of the same images and objects. A run may be in several.
        resamples: how often the images are drawn; 0 gives the figures without intervals.
        seed: of the draws. Resample i is the same images whatever the number of resamples and runs.
        progress: told the number of sets measured and their number in all, as they are done.

    Raises:
        InputError: a configuration without runs, or runs on different images or objects.
    """
    runs = list({id(run): run for members in groups.values() for run in members}.values())  # each is measured once
    _check_comparable(groups)
    num_images = len(runs[0].image_ids) if runs else 0
    longest = max((len(column) for run in runs for column in (run.hit_images, run.inside_images)), default=0)
    at_once = max(1, _ROWS_AT_ONCE // max(longest, num_images, 1))

    def measure(sets: range) -> Float[np.ndarray, "B runs F"]:
        weights = np.stack([_draw(num_images, seed, number) for number in sets])
        return np.stack([_figures(average_precisions(run, weights)) for run in runs], axis=1)

    num_sets = resamples + 1
    parts = []
    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        blocks = [range(start, min(start + at_once, num_sets)) for start in range(0, num_sets if runs else 0, at_once)]
        for block, part in zip(blocks, pool.map(measure, blocks), strict=True):
            parts.append(part)
            if progress is not None:
                progress(block.stop, num_sets)

    figures = np.concatenate(parts) if parts else np.zeros((num_sets, 0, 0))
    place = {id(run): number for number, run in enumerate(runs)}
    values, resampled = {}, {}
    for config, members in groups.items():
        own = figures[:, [place[id(run)] for run in members]]
        values[config], resampled[config] = own[0], own[1:].mean(axis=1)
    classes, holding = (runs[0].classes, _holding_images(runs[0])) if runs else ((), np.zeros(0, np.int64))
    return Bootstrap(classes, holding, values, resampled)


def _figures(ap: Float[np.ndarray, "B C 4 10"]) -> Float[np.ndarray, "B F"]:
    """KEYS, each a mean over the classes that were measured, then AP by class."""
    by_range = ap.mean(axis=3)
    by_class = by_range[:, :, 0]
    at_50, at_75 = ap[:, :, 0, 0], ap[:, :, 0, 5]
    means = [_mean(values) for values in (by_class, at_50, at_75, *np.moveaxis(by_range[:, :, 1:], 2, 0))]
    return np.concatenate([np.stack(means, axis=1), by_class], axis=1)


def _mean(values: Float[np.ndarray, "B rows"]) -> Float[np.ndarray, "B"]:
    """Mean of what was measured; NaN where nothing was."""
    measured = ~np.isnan(values)
    count = measured.sum(axis=1)
    total = np.where(measured, values, 0.0).sum(axis=1)
    return np.divide(total, count, out=np.full(len(values), np.nan), where=count > 0)


def _draw(num_images: int, seed: int, number: int) -> Int64[np.ndarray, "N"]:
    """How often each image was drawn: once each for number 0, with replacement for the others."""
    if number == 0:
        return np.ones(num_images, np.int64)
    drawn = np.random.default_rng([seed, number]).integers(0, max(num_images, 1), num_images)
    return np.bincount(drawn, minlength=num_images)


def _holding_images(matches: Matches) -> Int64[np.ndarray, "F"]:
    """For each figure the number of images that hold an object of its class and size."""
    num_classes = len(matches.classes)
    holds = np.zeros((num_classes, len(AREA_RANGES), len(matches.image_ids)), bool)
    part = np.repeat(np.arange(num_classes * len(AREA_RANGES)), np.diff(matches.object_offsets))
    holds[part // len(AREA_RANGES), part % len(AREA_RANGES), matches.object_images] = True
    any_class = holds.any(axis=0).sum(axis=1)
    return np.concatenate([any_class[[0, 0, 0, 1, 2, 3]], holds[:, 0].sum(axis=1)])


def _check_comparable(groups: Mapping[str, Sequence[Matches]]) -> None:
    first: Matches | None = None
    for config, members in groups.items():
        if not members:
            raise InputError("has no run to compare", place=config)
        for run in members:
            first = first or run
            same = first.classes == run.classes and all(
                np.array_equal(mine, other)
                for mine, other in (
                    (first.image_ids, run.image_ids),
                    (first.object_images, run.object_images),
                    (first.object_offsets, run.object_offsets),
                )
            )
            if not same:
                raise InputError(
                    "was measured on other images or objects than the rest; give all of one data set", place=config
                )
