"""Bootstrap of COCO's AP over test images: 95% intervals, and significance verdicts on pairs of detectors.

    boot = bootstrap({"retinanet": [collect_matches(ground_truth, run) for run in runs], "yolov1": [...]})
    boot.interval("retinanet", "AP"), boot.difference("retinanet", "yolov1", "AP50").verdict

Paired bootstrap (Efron and Tibshirani, "An Introduction to the Bootstrap", 1993, chapters 6 and 13): each resample
draws as many images as the test set has, with replacement, the same ones for every detector, and all metrics are
computed on it. An image that is drawn k times has weight k; it is not matched again (see `zoo.evaluation.matches`).

Exact definition of a resample: the set that holds an image drawn k times k times under new ids, and in which equal
scores are ranked as in the canonical order of the original set, so that copies of one detection stay together.
`evaluate` gives the same values for that set. A class or size without an object in a resample is undefined there, as
in any set without it: it is left out of the mean over classes, and that resample is left out of its interval.

The plain percentile interval covers the true value too rarely, as measured on simulated detectors of known AP:

- A metric that depends on few images varies less over resamples than over test sets. The interval is stretched about
  its centre by t / z * sqrt(m / (m - 1)), with m the number of images with an object of the class and size and t
  Student's quantile for m - 1 degrees of freedom, which is Hesterberg's correction ("What Teachers Should Know About
  the Bootstrap", The American Statistician 69, 2015, section 5) as a factor. Without it, the AP of a class with objects
  in two or three images was covered in 6 to 8 of 10 trials. With objects in one image only there is no interval.
- AP is biased upwards on a small set, since the best precision at a recall or above is a maximum over noise; on a
  resample the bias is added again, by half as much or more. The interval of one AP is shifted back by it (the
  bootstrap's bias correction, Efron and Tibshirani, chapter 10), and always includes the value itself: with 100
  images and two or three classes it covers in 90 to 93 of 100 trials, where the percentiles cover in 83 to 91.
- In a difference most of the bias cancels, but not all, and the sign of the rest is unknown: its interval includes both
  the percentile interval and the shifted one. They are equal where resampling does not shift the difference.

Not corrected: dozens of classes on a few hundred images with about ten objects each, where AP is too high by several
times its standard deviation. Differences are then covered in 8 to 10 of 10 trials, but single values only in 3 to 9;
`zoo.report.warnings` has the table and warns the reader of a report.

An interval says how much the value would vary with other test images, for the weights that were trained. How much it
would vary with another training is the spread over seeds, which is reported separately.
A verdict is about one metric of one pair: on average one of twenty ties is "better" or "worse" by chance.

Legend:
    N  images      C  classes      F  metrics: KEYS, then AP of each class      S  seeds      R  resamples
    B  weighted sets of images computed at once
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
_ROWS_AT_ONCE = 2**17  # of a column, over the sets computed at once: small enough for a cache, large enough for numpy


class Interval(NamedTuple):
    """Value of a metric in 0..1 and its 95% interval; NaN where undefined."""

    value: float
    low: float
    high: float


class Difference(NamedTuple):
    """A metric of the first configuration minus that of the second, its 95% interval, and the verdict on the first."""

    value: float
    low: float
    high: float
    verdict: Literal["better", "worse", "tie"]  # a tie if the interval contains 0 or is undefined


@dataclass(frozen=True, eq=False)
class Bootstrap:
    """Metrics of all configurations on the test images and on shared resamples of them; the result of `bootstrap`."""

    classes: tuple[str, ...]
    images_with_objects: Int64[np.ndarray, " F"]  # number of images with an object of the metric's class and size
    values: dict[str, Float[np.ndarray, "S F"]]  # configuration -> on the test images, by seed
    resampled: dict[str, Float[np.ndarray, "R F"]]  # configuration -> on the resamples, mean over seeds

    @property
    def class_images(self) -> dict[str, int]:
        """Class name -> number of images with an object of the class."""
        return dict(zip(self.classes, self.images_with_objects[len(KEYS) :].tolist(), strict=True))

    def interval(self, config: str, key: str) -> Interval:
        """One of `KEYS` of a configuration with its interval, mean over seeds."""
        return self._interval(config, KEYS.index(key))

    def class_interval(self, config: str, name: str) -> Interval:
        """AP of one class with its interval, mean over seeds."""
        return self._interval(config, len(KEYS) + self.classes.index(name))

    def difference(self, first: str, second: str, key: str) -> Difference:
        """Difference of two configurations in one of `KEYS`."""
        return self._difference(first, second, KEYS.index(key))

    def class_difference(self, first: str, second: str, name: str) -> Difference:
        """Difference of two configurations in AP of one class."""
        return self._difference(first, second, len(KEYS) + self.classes.index(name))

    def _interval(self, config: str, metric: int) -> Interval:
        value = float(self.values[config][:, metric].mean())
        resampled = self.resampled[config][:, metric]
        ends = stretched_interval(resampled, int(self.images_with_objects[metric]))
        low, high = np.clip(ends - 2 * _bias(resampled, value), 0, 1)
        return Interval(value, float(np.minimum(low, value)), float(np.maximum(high, value)))

    def _difference(self, first: str, second: str, metric: int) -> Difference:
        value = float(self.values[first][:, metric].mean() - self.values[second][:, metric].mean())
        resampled = self.resampled[first][:, metric] - self.resampled[second][:, metric]
        ends = stretched_interval(resampled, int(self.images_with_objects[metric]))
        both = np.stack([ends, ends - 2 * _bias(resampled, value)])
        low, high = float(both.min()), float(both.max())
        return Difference(value, low, high, "better" if low > 0 else "worse" if high < 0 else "tie")


def stretched_interval(resampled: Float[np.ndarray, " R"], num_images: int) -> Float[np.ndarray, "2"]:
    """95% percentile interval, stretched about the mean of the resamples to correct for few images.

    Args:
        resampled: the metric on each resample; NaN where undefined.
        num_images: test images with an object of the metric's class and size.

    Returns:
        low and high; NaN where fewer than two images have such an object.
    """
    defined = resampled[~np.isnan(resampled)]
    if num_images < 2 or len(defined) == 0:
        return np.full(2, np.nan)
    tail = (1 - CONFIDENCE) / 2
    centre = defined.mean()
    stretch = t.isf(tail, num_images - 1) / norm.isf(tail) * math.sqrt(num_images / (num_images - 1))
    return centre + stretch * (np.quantile(defined, [tail, 1 - tail]) - centre)


def _bias(resampled: Float[np.ndarray, " R"], value: float) -> float:
    """Bootstrap estimate of bias: mean over resamples minus the value on the test images."""
    return float(_mean(resampled[None])[0]) - value


def bootstrap(
    groups: Mapping[str, Sequence[Matches]],
    resamples: int = 1000,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> Bootstrap:
    """Evaluate runs on the test images and on resamples of them, on as many threads as torch uses.

    Args:
        groups: configuration -> its runs, one for each seed; all on the same images and objects. A run may be in
            several configurations.
        resamples: number of resamples; 0 gives values without intervals.
        seed: of the resampling. Resample i has the same images for any number of resamples and runs.
        progress: called with the number of finished sets and the total number of sets.

    Raises:
        InputError: a configuration without runs, or runs on different images or objects.
    """
    runs = list({id(run): run for members in groups.values() for run in members}.values())  # each is evaluated once
    _check_comparable(groups)
    num_images = len(runs[0].image_ids) if runs else 0
    longest = max((len(column) for run in runs for column in (run.hit_images, run.inside_images)), default=0)
    at_once = max(1, _ROWS_AT_ONCE // max(longest, num_images, 1))

    def compute_metrics(sets: range) -> Float[np.ndarray, "B runs F"]:
        weights = np.stack([_draw(num_images, seed, number) for number in sets])
        return np.stack([_metrics(average_precisions(run, weights)) for run in runs], axis=1)

    num_sets = resamples + 1
    parts = []
    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        blocks = [range(start, min(start + at_once, num_sets)) for start in range(0, num_sets if runs else 0, at_once)]
        for block, part in zip(blocks, pool.map(compute_metrics, blocks), strict=True):
            parts.append(part)
            if progress is not None:
                progress(block.stop, num_sets)

    metrics = np.concatenate(parts) if parts else np.zeros((num_sets, 0, 0))
    column = {id(run): number for number, run in enumerate(runs)}
    values, resampled = {}, {}
    for config, members in groups.items():
        of_config = metrics[:, [column[id(run)] for run in members]]
        values[config], resampled[config] = of_config[0], of_config[1:].mean(axis=1)
    classes, counts = (runs[0].classes, _count_images_with_objects(runs[0])) if runs else ((), np.zeros(0, np.int64))
    return Bootstrap(classes, counts, values, resampled)


def _metrics(ap: Float[np.ndarray, "B C 4 10"]) -> Float[np.ndarray, "B F"]:
    """KEYS, each a mean over the classes with a defined AP, then AP by class."""
    by_range = ap.mean(axis=3)
    by_class = by_range[:, :, 0]
    at_50, at_75 = ap[:, :, 0, 0], ap[:, :, 0, 5]
    means = [_mean(values) for values in (by_class, at_50, at_75, *np.moveaxis(by_range[:, :, 1:], 2, 0))]
    return np.concatenate([np.stack(means, axis=1), by_class], axis=1)


def _mean(values: Float[np.ndarray, "B rows"]) -> Float[np.ndarray, " B"]:
    """Mean of each row's defined values; NaN where none is defined."""
    defined = ~np.isnan(values)
    count = defined.sum(axis=1)
    total = np.where(defined, values, 0.0).sum(axis=1)
    return np.divide(total, count, out=np.full(len(values), np.nan), where=count > 0)


def _draw(num_images: int, seed: int, number: int) -> Int64[np.ndarray, " N"]:
    """How often set `number` holds each image: once each for number 0, drawn with replacement for the others."""
    if number == 0:
        return np.ones(num_images, np.int64)
    drawn = np.random.default_rng([seed, number]).integers(0, max(num_images, 1), num_images)
    return np.bincount(drawn, minlength=num_images)


def _count_images_with_objects(matches: Matches) -> Int64[np.ndarray, " F"]:
    """Number of images with an object of each metric's class and size."""
    num_classes = len(matches.classes)
    has_object = np.zeros((num_classes, len(AREA_RANGES), len(matches.image_ids)), bool)
    part = np.repeat(np.arange(num_classes * len(AREA_RANGES)), np.diff(matches.object_offsets))
    has_object[part // len(AREA_RANGES), part % len(AREA_RANGES), matches.object_images] = True
    any_class = has_object.any(axis=0).sum(axis=1)
    return np.concatenate([any_class[[0, 0, 0, 1, 2, 3]], has_object[:, 0].sum(axis=1)])


def _check_comparable(groups: Mapping[str, Sequence[Matches]]) -> None:
    first: Matches | None = None
    for config, members in groups.items():
        if not members:
            raise InputError("has no run; give at least one", place=config)
        for run in members:
            first = first or run
            same = first.classes == run.classes and all(
                np.array_equal(expected, found)
                for expected, found in (
                    (first.image_ids, run.image_ids),
                    (first.object_images, run.object_images),
                    (first.object_offsets, run.object_offsets),
                )
            )
            if not same:
                raise InputError(
                    "was evaluated on other images or objects than the first run; evaluate all runs on one data set",
                    place=config,
                )
