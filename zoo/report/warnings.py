"""Warnings below the headline of a report.

Bootstrap intervals are too narrow where there are too few images for the number of classes.

AP is biased upwards on few objects (see `zoo.evaluation.bootstrap`), by about the same amount for every class: the mean
over C classes keeps the bias of one class, while its interval shrinks by sqrt(C). The decisive ratio is C / m, where m
is the median over classes of the number of images with an object of the class. Coverage of 95% intervals (share that
contained the true AP, or the true difference of two detectors) in simulations with 2 to 80 classes, 20 to 3200 images,
equal and unequal class frequencies, and similar and different detectors (100 or 120 trials of each set, 200 resamples;
minimum, mean, maximum):

    C / m         of one AP          of a difference
    to 1/4        .84  .92  .98      .88  .95  .99
    1/4 to 1      .78  .86  .94      .88  .94  .98
    1 to 3        .51  .79  .95      .75  .93  .99
    above 3       .29  .49  .87      .77  .90  .99

Coverage of differences is lowest where one detector is far more accurate than the other. The sign of the difference was
wrong in at most one of 100 trials of any pair: such an interval is wrong about the size of the difference.
"""

from statistics import median

from zoo.report.results import Results
from zoo.report.summary_text import evaluated_images

_LOWEST_COVERAGE = ((3.0, 29, 77), (1.0, 51, 75), (0.25, 78, 88))
"""(C / m, lowest coverage in per cent above it of an AP, of a difference)."""


def report_warnings(results: Results) -> list[str]:
    """All warnings about the results, a sentence or two each."""
    return [text for text in (interval_warning(results), selection_warning(results), *results.notes) if text]


def selection_warning(results: Results) -> str:
    """Warning that checkpoints were chosen on the evaluated images; "" where there is a test split."""
    if "test" in results.data or "val" not in results.data or not any(run.curve for run in results.runs):
        return ""
    return (
        "There is no test split: the checkpoint of each run was chosen by its AP on the same validation images that all"
        " metrics are of, so they are optimistic. `zoo split` divides the data into train, val and test."
    )


def interval_warning(results: Results) -> str:
    """Warning that the intervals are probably too narrow; "" where they are not, or where there are none."""
    counts = [count for count in results.class_images.values() if count]  # classes without objects have no AP
    if not results.resamples or not counts:
        return ""
    typical = median(counts)
    for above, of_ap, of_difference in _LOWEST_COVERAGE:
        if len(counts) / typical > above:
            number = results.data.get("test", results.data.get("val", ""))
            images = f"{number} {evaluated_images(results)}".lstrip()
            return (
                f"Intervals are probably too narrow: half of the {len(counts)} classes are in at most {typical:g}"
                f" of the {images}. In simulations of such data sets AP was biased upwards, and 95% intervals contained"
                f" the true AP in as few as {of_ap}% of the trials, the true difference in as few as {of_difference}%."
            )
    return ""
