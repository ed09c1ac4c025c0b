"""Intervals and verdicts: coverage on simulated detectors whose true difference is known, and the small cases."""

import math

import numpy as np
import pytest
from made_up import make_results

from zoo.errors import InputError
from zoo.evaluation import GroundTruth, Predictions, evaluate
from zoo.evaluation.bootstrap import KEYS, Bootstrap, bootstrap, stretched_interval
from zoo.evaluation.matches import Matches, collect_matches
from zoo.report.interval_warning import caution

CLASSES = ("often", "seldom")


def simulate_truth(rng: np.random.Generator, num_images: int, num_classes: int | None = None) -> GroundTruth:
    """Images that are crowded or not, objects from 12 to 200 pixels.

    One of two classes is three times as frequent; where a number of classes is given, all are alike.
    """
    counts = rng.poisson(3 * rng.gamma(2, 0.5, num_images))
    size = np.exp(rng.uniform(np.log(12), np.log(200), (counts.sum(), 1))) * np.exp(
        rng.normal(0, 0.2, (counts.sum(), 2))
    )
    corner = rng.uniform(0, 400, size.shape)
    return GroundTruth.from_counts(
        classes=CLASSES if num_classes is None else tuple(map(str, range(num_classes))),
        image_ids=np.arange(num_images),
        counts=counts,
        boxes=np.concatenate([corner, corner + size], axis=1),
        areas=size.prod(axis=1),
        labels=(
            rng.random(len(size)) < 0.25 if num_classes is None else rng.integers(0, num_classes, len(size))
        ).astype(np.int64),
        iscrowd=np.zeros(len(size), bool),
        difficult=np.zeros(len(size), bool),
    )


def simulate_detector(
    rng: np.random.Generator, truth: GroundTruth, hardness: np.ndarray, recall: float, blur: float
) -> Predictions:
    """Finds objects with boxes that are off, and mistakes; both worse on images that are hard for every detector."""
    odds = np.log(recall / (1 - recall)) - hardness[truth.image_index]
    found = rng.random(len(odds)) < 1 / (1 + np.exp(-odds))
    boxes = truth.boxes[found]
    spread = np.tile(boxes[:, 2:] - boxes[:, :2], 2) * blur * rng.gamma(2, 0.5, (len(boxes), 1))
    boxes = boxes + rng.normal(0, 1, boxes.shape) * spread
    boxes[:, 2:] = np.maximum(boxes[:, 2:], boxes[:, :2] + 1)
    wrong = rng.poisson(2 * np.exp(0.3 * hardness))
    corner = rng.uniform(0, 400, (wrong.sum(), 2))
    mistakes = np.concatenate([corner, corner + np.exp(rng.uniform(np.log(12), np.log(200), corner.shape))], axis=1)
    return Predictions(
        image_ids=np.concatenate([truth.image_index[found], np.repeat(np.arange(len(wrong)), wrong)]),
        boxes=np.concatenate([boxes, mistakes]),
        scores=np.concatenate([rng.normal(1, 1, len(boxes)), rng.normal(-1, 1, len(mistakes))]),
        labels=np.concatenate([truth.labels[found], rng.integers(0, len(truth.classes), len(mistakes))]),
    )


def of_images(truth: GroundTruth, predictions: Predictions, image_ids: np.ndarray) -> Matches:
    own = np.isin(predictions.image_ids, image_ids)
    part = Predictions(
        predictions.image_ids[own], predictions.boxes[own], predictions.scores[own], predictions.labels[own]
    )
    return collect_matches(truth.of_images(image_ids), part)


def run_trials(population: int, trials: int, resamples: int, same: bool, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Test sets of 100 images, and what the bootstrap says of two detectors on each.

    Args:
        population: images that test sets are drawn from, and that tell the true difference.
        trials: number of test sets.
        resamples: of each.
        same: two draws of one detector; otherwise the first is better by some 4 points of AP.
        seed: of everything.

    Returns:
        [trials, keys] whether the interval held the difference on the population; whether the verdict was a tie.
    """
    rng = np.random.default_rng(seed)
    truth = simulate_truth(rng, population)
    hardness = rng.normal(0, 1, len(truth.image_ids))
    first = simulate_detector(rng, truth, hardness, recall=0.8, blur=0.08)
    second = simulate_detector(rng, truth, hardness, recall=0.8 if same else 0.75, blur=0.08 if same else 0.09)
    true_first, true_second = (evaluate(truth, side, ["coco"]).metrics for side in (first, second))
    covered, tied = [], []
    for _ in range(trials):
        ids = np.sort(rng.choice(len(truth.image_ids), 100, replace=False))
        groups = {"first": [of_images(truth, first, ids)], "second": [of_images(truth, second, ids)]}
        drawn = bootstrap(groups, resamples, seed=int(rng.integers(2**31)))
        differences = {key: drawn.difference("first", "second", key) for key in KEYS}
        covered.append([d.low <= true_first[key] - true_second[key] <= d.high for key, d in differences.items()])
        tied.append([d.verdict == "tie" for d in differences.values()])
    return np.array(covered), np.array(tied)


def test_intervals_cover_and_equal_detectors_tie_in_a_few_trials() -> None:
    covered, tied = run_trials(population=4_000, trials=60, resamples=100, same=True, seed=1)
    # 95 of 100 expected; fewer than 52 of 60 by chance in one of a thousand
    assert (covered.sum(axis=0) >= 52).all(), covered.sum(axis=0)
    assert (tied.sum(axis=0) >= 52).all(), tied.sum(axis=0)


@pytest.mark.slow
@pytest.mark.parametrize("same", [False, True])
def test_intervals_are_honest(same: bool) -> None:
    covered, tied = run_trials(population=20_000, trials=500, resamples=400, same=same, seed=2)
    share = covered.mean(axis=0)
    assert (share[:3] >= 0.93).all(), share  # AP, AP50, AP75
    assert (share[:3] <= 0.97).all(), share
    # sizes rest on a third of the objects; one in a hundred either way is chance in 500 trials
    assert (share[3:] >= 0.92).all(), share
    assert (share[3:] <= 0.98).all(), share
    if same:
        assert (tied.mean(axis=0) >= 0.93).all(), tied.mean(axis=0)


@pytest.mark.slow
@pytest.mark.parametrize(("num_classes", "num_images", "narrow"), [(80, 200, True), (2, 100, False)])
def test_reports_warn_where_intervals_of_one_figure_are_too_narrow(
    num_classes: int, num_images: int, narrow: bool
) -> None:
    rng = np.random.default_rng(3)
    truth = simulate_truth(rng, 20_000, num_classes)
    detector = simulate_detector(rng, truth, rng.normal(0, 1, len(truth.image_ids)), recall=0.8, blur=0.08)
    true = evaluate(truth, detector, ["coco"]).metrics["AP"]
    held = []
    for _ in range(60):
        ids = np.sort(rng.choice(len(truth.image_ids), num_images, replace=False))
        drawn = bootstrap({"a": [of_images(truth, detector, ids)]}, 200, seed=int(rng.integers(2**31)))
        _, low, high = drawn.interval("a", "AP")
        held.append(low <= true <= high)
    results = make_results(1, classes=truth.classes)
    results.class_images = drawn.class_images
    assert bool(caution(results)) == narrow
    # 29 to 49 of 100 where it is warned of, 84 to 98 where it is not; three deviations of 60 trials are left
    assert (sum(held) / 60 < 0.68) if narrow else (sum(held) / 60 > 0.78), sum(held)


@pytest.fixture(scope="module")
def world() -> dict[str, Predictions | GroundTruth]:
    rng = np.random.default_rng(5)
    truth = simulate_truth(rng, 40)
    hardness = np.zeros(40)
    sides = {name: simulate_detector(rng, truth, hardness, recall=0.8, blur=0.08) for name in ("seed 0", "seed 1")}
    sides["bad"] = simulate_detector(rng, truth, hardness, recall=0.3, blur=0.2)
    return {"truth": truth, **sides}


@pytest.fixture(scope="module")
def matches(world) -> dict[str, Matches]:
    return {name: collect_matches(world["truth"], side) for name, side in world.items() if name != "truth"}


def test_values_are_what_evaluate_says(world, matches) -> None:
    drawn = bootstrap({"good": [matches["seed 0"], matches["seed 1"]], "bad": [matches["bad"]]}, resamples=20)
    scores = {name: evaluate(world["truth"], side, ["coco"]) for name, side in world.items() if name != "truth"}
    for key in KEYS:
        good = (scores["seed 0"].metrics[key] + scores["seed 1"].metrics[key]) / 2
        bad = scores["bad"].metrics[key]
        assert drawn.interval("good", key).value == pytest.approx(good, abs=1e-9)
        assert drawn.difference("good", "bad", key).value == pytest.approx(good - bad, abs=1e-9)
    for name in CLASSES:
        good = (scores["seed 0"].per_class[name]["AP"] + scores["seed 1"].per_class[name]["AP"]) / 2
        bad = scores["bad"].per_class[name]["AP"]
        assert drawn.class_interval("good", name).value == pytest.approx(good, abs=1e-9)
        assert drawn.class_difference("good", "bad", name).value == pytest.approx(good - bad, abs=1e-9)


def test_a_far_better_detector_is_better_and_the_other_way_round_worse(matches) -> None:
    drawn = bootstrap({"good": [matches["seed 0"]], "bad": [matches["bad"]]}, resamples=100)
    ahead, behind = drawn.difference("good", "bad", "AP"), drawn.difference("bad", "good", "AP")
    assert ahead.verdict == "better"
    assert behind.verdict == "worse"
    assert (ahead.value, ahead.low, ahead.high) == pytest.approx((-behind.value, -behind.high, -behind.low))
    assert drawn.class_difference("good", "bad", "often").verdict == "better"
    interval = drawn.interval("good", "AP")
    assert 0 < interval.low < interval.value < interval.high < 1


def test_a_detector_ties_with_itself(matches) -> None:
    drawn = bootstrap({"one": [matches["bad"]], "other": [matches["bad"]]}, resamples=30)
    assert drawn.difference("one", "other", "AP50") == (0.0, 0.0, 0.0, "tie")


def test_seeds_are_averaged_in_each_resample(matches) -> None:
    both = bootstrap({"both": [matches["seed 0"], matches["seed 1"]]}, resamples=10, seed=3)
    each = [bootstrap({"one": [matches[name]]}, resamples=10, seed=3) for name in ("seed 0", "seed 1")]
    mean = (each[0].resampled["one"] + each[1].resampled["one"]) / 2
    np.testing.assert_allclose(both.resampled["both"], mean, atol=1e-12)
    groups = {
        "second": [matches["seed 1"]],
        "both": [matches["seed 0"], matches["seed 1"]],
        "first": [matches["seed 0"]],
    }
    shared = bootstrap(groups, resamples=10, seed=3)
    np.testing.assert_allclose(shared.resampled["both"], mean, atol=1e-12)
    np.testing.assert_allclose(shared.resampled["first"], each[0].resampled["one"], atol=1e-12)


def test_spread_over_seeds(matches) -> None:
    drawn = bootstrap({"both": [matches["seed 0"], matches["seed 1"]], "one": [matches["bad"]]}, resamples=0)
    first, second = (drawn.values["both"][seed, 0] for seed in (0, 1))
    spread = drawn.seed_spread("both", "AP")
    assert spread.mean == pytest.approx((first + second) / 2)
    assert spread.deviation == pytest.approx(abs(first - second) / math.sqrt(2))  # of two numbers
    assert (spread.low, spread.high) == (min(first, second), max(first, second))
    assert math.isnan(drawn.seed_spread("one", "AP").deviation)


def test_a_resample_hangs_on_seed_and_number_only(matches) -> None:
    few = bootstrap({"a": [matches["bad"]]}, resamples=5, seed=1)
    many = bootstrap({"b": [matches["seed 0"]], "a": [matches["bad"]]}, resamples=9, seed=1)
    np.testing.assert_allclose(few.resampled["a"], many.resampled["a"][:5], atol=1e-12)
    other = bootstrap({"a": [matches["bad"]]}, resamples=5, seed=2)
    assert not np.allclose(few.resampled["a"], other.resampled["a"])


def test_progress_is_told_to_the_end(matches) -> None:
    told = []
    bootstrap({"a": [matches["bad"]]}, resamples=300, progress=lambda done, number: told.append((done, number)))
    assert told == sorted(told)
    assert told[-1] == (301, 301)


def sized(boxes_by_image: list[list[float]], classes: tuple[str, ...] = ("thing", "nothing")) -> Bootstrap:
    """Bootstrap of a detector that finds every other object; each image holds squares of these sides."""
    sides = np.array([side for image in boxes_by_image for side in image])
    boxes = np.stack([np.zeros_like(sides), np.zeros_like(sides), sides, sides], axis=1)
    counts = np.array([len(image) for image in boxes_by_image], np.int64)
    truth = GroundTruth.from_counts(
        classes=classes,
        image_ids=np.arange(len(counts)),
        counts=counts,
        boxes=boxes,
        areas=sides**2,
        labels=np.zeros(len(sides), np.int64),
        iscrowd=np.zeros(len(sides), bool),
        difficult=np.zeros(len(sides), bool),
    )
    found = Predictions(truth.image_index[::2], boxes[::2], np.linspace(1, 0.5, len(boxes[::2])), truth.labels[::2])
    none = Predictions(truth.image_ids[:0], boxes[:0], np.zeros(0), truth.labels[:0])
    return bootstrap({"half": [collect_matches(truth, found)], "none": [collect_matches(truth, none)]}, resamples=50)


def test_images_of_a_class_are_counted_once_each() -> None:
    drawn = sized([[100.0, 90.0], [100.0], []])
    assert drawn.class_images == {"thing": 2, "nothing": 0}


def test_what_was_not_measured_has_no_interval_and_no_verdict() -> None:
    drawn = sized([[100.0], [100.0], [100.0], []])
    small = drawn.difference("half", "none", "APs")
    assert np.isnan(small[:3]).all()
    assert small.verdict == "tie"
    assert np.isnan(drawn.class_interval("half", "nothing")).all()
    large = drawn.interval("half", "APl")
    assert large.value == pytest.approx(67 / 101)  # two of three objects: the recalls to 0.66
    assert 0 <= large.low <= large.value <= large.high <= 1


def test_objects_in_one_image_are_too_few_for_an_interval() -> None:
    drawn = sized([[100.0], [100.0, 10.0, 10.0], [100.0]])
    small = drawn.difference("half", "none", "APs")
    assert small.value > 0
    assert math.isnan(small.low)
    assert math.isnan(small.high)
    assert small.verdict == "tie"


def test_a_set_without_images_or_resamples_or_runs() -> None:
    assert np.isnan(sized([]).interval("half", "AP")).all()
    assert bootstrap({}).values == {}
    without = bootstrap({"a": [sized_matches()]}, resamples=0).interval("a", "AP")
    assert without.value == pytest.approx(1.0)
    assert math.isnan(without.low)


def sized_matches() -> Matches:
    truth = simulate_truth(np.random.default_rng(0), 5)
    perfect = Predictions(truth.image_index, truth.boxes, np.ones(len(truth.boxes)), truth.labels)
    return collect_matches(truth, perfect)


def test_stretch_by_hand() -> None:
    resampled = np.append(np.arange(0, 101) / 100, np.nan)  # mean .5, percentiles .025 and .975
    # Student's t of 97.5% for 3 degrees of freedom is 3.1824, the normal's 1.9600: tables
    low, high = stretched_interval(resampled, holding_images=4)
    reach = 0.475 * 3.1824 / 1.9600 * math.sqrt(4 / 3)
    assert (low, high) == pytest.approx((0.5 - reach, 0.5 + reach), abs=1e-4)
    assert stretched_interval(resampled, holding_images=10**6) == pytest.approx((0.025, 0.975), abs=1e-4)
    assert np.isnan(stretched_interval(resampled, holding_images=1)).all()


def test_bias_is_taken_back_by_hand() -> None:
    resampled = np.tile(np.linspace(0.55, 0.65, 101)[:, None], (1, len(KEYS)))  # mean .6, percentiles .5525 and .6475
    values = {"one": np.full((1, len(KEYS)), 0.5), "zero": np.zeros((1, len(KEYS)))}
    drawn = Bootstrap((), np.full(len(KEYS), 10**6), values, {"one": resampled, "zero": 0 * resampled})
    # .1 too high on resamples: .1 too high on the test images; the figure itself stays inside
    assert drawn.interval("one", "AP") == pytest.approx((0.5, 0.3525, 0.5), abs=1e-4)
    assert drawn.difference("one", "zero", "AP")[:3] == pytest.approx((0.5, 0.3525, 0.6475), abs=1e-4)
    assert drawn.difference("zero", "one", "AP")[:3] == pytest.approx((-0.5, -0.6475, -0.3525), abs=1e-4)


def test_runs_on_other_objects_are_refused(world, matches) -> None:
    fewer = world["truth"].of_images(np.arange(39))
    kept = world["bad"].image_ids < 39
    other = Predictions(*(column[kept] for column in vars(world["bad"]).values()))
    with pytest.raises(InputError, match="b: was measured on other images or objects"):
        bootstrap({"a": [matches["bad"]], "b": [collect_matches(fewer, other)]})
    with pytest.raises(InputError, match="b: has no run"):
        bootstrap({"a": [matches["bad"]], "b": []})
