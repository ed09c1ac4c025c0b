"""Whether the measured images are too few for the number of classes, so that intervals are narrower than they say.

AP is too high on few objects (see `zoo.evaluation.bootstrap`), and by about as much for every class: over C classes
the mean keeps the bias of one, while its interval shrinks by sqrt(C). So what counts is the number of classes over the
images that hold an object of a class, the median m over classes. Share of 95% intervals that held the true AP, and the
true difference of two detectors, in simulations with 2 to 80 classes, 20 to 3200 images, classes alike and unlike in
frequency, and detectors alike and unlike (100 or 120 trials of each set, 200 resamples; least, mean, greatest):

    C / m         of one AP          of a difference
    to 1/4        .84  .92  .98      .88  .95  .99
    1/4 to 1      .78  .86  .94      .88  .94  .98
    1 to 3        .51  .79  .95      .75  .93  .99
    above 3       .29  .49  .87      .77  .90  .99

Differences suffer where one detector is far more accurate than the other; which of the two is better was told wrongly
in no more than one of 100 trials of any pair: it is the size of the difference that such an interval is wrong about.
"""

from statistics import median

from zoo.report.results import Results
from zoo.report.summary_text import evaluated_images

_LEAST_HELD = ((3.0, 29, 77), (1.0, 51, 75), (0.25, 78, 88))
"""Classes over median images of a class, and above it the least shares in per cent: of an AP, of a difference."""


def caution(results: Results) -> str:
    """A sentence on intervals that are probably too narrow; "" where they are not, or where there are none."""
    counts = [count for count in results.class_images.values() if count]  # the mean is over classes that are there
    if not results.resamples or not counts:
        return ""
    typical = median(counts)
    for above, of_ap, of_difference in _LEAST_HELD:
        if len(counts) / typical > above:
            number = results.data.get("test", results.data.get("val", ""))
            images = f"{number} {evaluated_images(results)}".lstrip()
            return (
                f"Intervals are probably too narrow: half of the {len(counts)} classes are in at most {typical:g}"
                f" of the {images}. In simulations of such sets an AP came out too high, and its 95% interval held the"
                f" true one in as few as {of_ap}% of the trials; that of a difference in as few as {of_difference}%."
            )
    return ""
