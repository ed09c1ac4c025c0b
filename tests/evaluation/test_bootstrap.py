"""Bootstrap intervals and verdicts: coverage on simulated detectors of known AP, and small cases."""

import math

import numpy as np
import pytest
from made_up import make_results

from zoo.errors import InputError
from zoo.evaluation import GroundTruth, Predictions, evaluate
from zoo.evaluation.bootstrap import KEYS, Bootstrap, bootstrap, stretched_interval
from zoo.evaluation.matches import Matches, collect_matches
from zoo.report.warnings import interval_warning

CLASSES = ("frequent", "rare")


def simulate_ground_truth(rng: np.random.Generator, num_images: int, num_classes: int | None = None) -> GroundTruth:
    """Images with varying numbers of objects of 12 to 200 pixels.

    One of two classes is three times as frequent; if a number of classes is given, all are equally frequent.
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
    """Detections with noisy boxes, and false positives; both worse on images that are hard for every detector."""
    odds = np.log(recall / (1 - recall)) - hardness[truth.image_index]
    found = rng.random(len(odds)) < 1 / (1 + np.exp(-odds))
    boxes = truth.boxes[found]
    spread = np.tile(boxes[:, 2:] - boxes[:, :2], 2) * blur * rng.gamma(2, 0.5, (len(boxes), 1))
    boxes = boxes + rng.normal(0, 1, boxes.shape) * spread
    boxes[:, 2:] = np.maximum(boxes[:, 2:], boxes[:, :2] + 1)
    wrong = rng.poisson(2 * np.exp(0.3 * hardness))
    corner = rng.uniform(0, 400, (wrong.sum(), 2))
    false_positives = np.concatenate(
        [corner, corner + np.exp(rng.uniform(np.log(12), np.log(200), corner.shape))], axis=1
    )
    return Predictions(
        image_ids=np.concatenate([truth.image_index[found], np.repeat(np.arange(len(wrong)), wrong)]),
        boxes=np.concatenate([boxes, false_positives]),
        scores=np.concatenate([rng.normal(1, 1, len(boxes)), rng.normal(-1, 1, len(false_positives))]),
        labels=np.concatenate([truth.labels[found], rng.integers(0, len(truth.classes), len(false_positives))]),
    )


def match_images(truth: GroundTruth, predictions: Predictions, image_ids: np.ndarray) -> Matches:
    kept = np.isin(predictions.image_ids, image_ids)
    part = Predictions(
        predictions.image_ids[kept], predictions.boxes[kept], predictions.scores[kept], predictions.labels[kept]
    )
    return collect_matches(truth.of_images(image_ids), part)


def run_trials(population: int, trials: int, resamples: int, same: bool, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Bootstrap of two detectors on test sets of 100 images.

    Args:
        population: number of images that test sets are drawn from, and on which the true difference is computed.
        trials: number of test sets.
        resamples: of each test set.
        same: two simulations of one detector; otherwise the first is better by about 4 points of AP.
        seed: of the random generator.

    Returns:
        [trials, keys] whether the interval contains the difference on the population; whether the verdict is a tie.
    """
    rng = np.random.default_rng(seed)
    truth = simulate_ground_truth(rng, population)
    hardness = rng.normal(0, 1, len(truth.image_ids))
    first = simulate_detector(rng, truth, hardness, recall=0.8, blur=0.08)
    second = simulate_detector(rng, truth, hardness, recall=0.8 if same else 0.75, blur=0.08 if same else 0.09)
    true_first, true_second = (evaluate(truth, side, ["coco"]).metrics for side in (first, second))
    covered, tied = [], []
    for _ in range(trials):
        ids = np.sort(rng.choice(len(truth.image_ids), 100, replace=False))
        groups = {"first": [match_images(truth, first, ids)], "second": [match_images(truth, second, ids)]}
        boot = bootstrap(groups, resamples, seed=int(rng.integers(2**31)))
        differences = {key: boot.difference("first", "second", key) for key in KEYS}
        covered.append([d.low <= true_first[key] - true_second[key] <= d.high for key, d in differences.items()])
        tied.append([d.verdict == "tie" for d in differences.values()])
    return np.array(covered), np.array(tied)


def test_coverage_and_ties_of_equal_detectors_in_a_few_trials() -> None:
    covered, tied = run_trials(population=4_000, trials=60, resamples=100, same=True, seed=1)
    # 95 of 100 are expected; fewer than 52 of 60 have a probability of one in a thousand
    assert (covered.sum(axis=0) >= 52).all(), covered.sum(axis=0)
    assert (tied.sum(axis=0) >= 52).all(), tied.sum(axis=0)


@pytest.mark.slow
@pytest.mark.parametrize("same", [False, True])
def test_coverage_of_difference_intervals(same: bool) -> None:
    covered, tied = run_trials(population=20_000, trials=500, resamples=400, same=same, seed=2)
    share = covered.mean(axis=0)
    assert (share[:3] >= 0.93).all(), share  # AP, AP50, AP75
    assert (share[:3] <= 0.97).all(), share
    # size ranges have a third of the objects each; .01 is allowed for chance in 500 trials
    assert (share[3:] >= 0.92).all(), share
    assert (share[3:] <= 0.98).all(), share
    if same:
        assert (tied.mean(axis=0) >= 0.93).all(), tied.mean(axis=0)


@pytest.mark.slow
@pytest.mark.parametrize(("num_classes", "num_images", "narrow"), [(80, 200, True), (2, 100, False)])
def test_interval_warning_where_intervals_of_one_ap_are_too_narrow(
    num_classes: int, num_images: int, narrow: bool
) -> None:
    rng = np.random.default_rng(3)
    truth = simulate_ground_truth(rng, 20_000, num_classes)
    detector = simulate_detector(rng, truth, rng.normal(0, 1, len(truth.image_ids)), recall=0.8, blur=0.08)
    true_ap = evaluate(truth, detector, ["coco"]).metrics["AP"]
    covered = []
    for _ in range(60):
        ids = np.sort(rng.choice(len(truth.image_ids), num_images, replace=False))
        boot = bootstrap({"a": [match_images(truth, detector, ids)]}, 200, seed=int(rng.integers(2**31)))
        _, low, high = boot.interval("a", "AP")
        covered.append(low <= true_ap <= high)
    results = make_results(1, classes=truth.classes)
    results.class_images = boot.class_images
    assert bool(interval_warning(results)) == narrow
    # 29 to 49 of 100 with a warning, 84 to 98 without; plus a margin of three standard deviations of 60 trials
    assert (sum(covered) / 60 < 0.68) if narrow else (sum(covered) / 60 > 0.78), sum(covered)


@pytest.fixture(scope="module")
def scene() -> dict[str, Predictions | GroundTruth]:
    rng = np.random.default_rng(5)
    truth = simulate_ground_truth(rng, 40)
    hardness = np.zeros(40)
    sides = {name: simulate_detector(rng, truth, hardness, recall=0.8, blur=0.08) for name in ("seed 0", "seed 1")}
    sides["bad"] = simulate_detector(rng, truth, hardness, recall=0.3, blur=0.2)
    return {"truth": truth, **sides}


@pytest.fixture(scope="module")
def matches(scene) -> dict[str, Matches]:
    return {name: collect_matches(scene["truth"], side) for name, side in scene.items() if name != "truth"}


def test_values_equal_evaluate(scene, matches) -> None:
    boot = bootstrap({"good": [matches["seed 0"], matches["seed 1"]], "bad": [matches["bad"]]}, resamples=20)
    scores = {name: evaluate(scene["truth"], side, ["coco"]) for name, side in scene.items() if name != "truth"}
    for key in KEYS:
        good = (scores["seed 0"].metrics[key] + scores["seed 1"].metrics[key]) / 2
        bad = scores["bad"].metrics[key]
        assert boot.interval("good", key).value == pytest.approx(good, abs=1e-9)
        assert boot.difference("good", "bad", key).value == pytest.approx(good - bad, abs=1e-9)
    for name in CLASSES:
        good = (scores["seed 0"].per_class[name]["AP"] + scores["seed 1"].per_class[name]["AP"]) / 2
        bad = scores["bad"].per_class[name]["AP"]
        assert boot.class_interval("good", name).value == pytest.approx(good, abs=1e-9)
        assert boot.class_difference("good", "bad", name).value == pytest.approx(good - bad, abs=1e-9)


def test_verdict_is_better_or_worse_for_a_large_difference(matches) -> None:
    boot = bootstrap({"good": [matches["seed 0"]], "bad": [matches["bad"]]}, resamples=100)
    better, worse = boot.difference("good", "bad", "AP"), boot.difference("bad", "good", "AP")
    assert better.verdict == "better"
    assert worse.verdict == "worse"
    assert (better.value, better.low, better.high) == pytest.approx((-worse.value, -worse.high, -worse.low))
    assert boot.class_difference("good", "bad", "frequent").verdict == "better"
    interval = boot.interval("good", "AP")
    assert 0 < interval.low < interval.value < interval.high < 1


def test_verdict_of_a_detector_with_itself_is_a_tie(matches) -> None:
    boot = bootstrap({"one": [matches["bad"]], "other": [matches["bad"]]}, resamples=30)
    assert boot.difference("one", "other", "AP50") == (0.0, 0.0, 0.0, "tie")


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


def test_resamples_depend_only_on_seed_and_index(matches) -> None:
    few = bootstrap({"a": [matches["bad"]]}, resamples=5, seed=1)
    many = bootstrap({"b": [matches["seed 0"]], "a": [matches["bad"]]}, resamples=9, seed=1)
    np.testing.assert_allclose(few.resampled["a"], many.resampled["a"][:5], atol=1e-12)
    other = bootstrap({"a": [matches["bad"]]}, resamples=5, seed=2)
    assert not np.allclose(few.resampled["a"], other.resampled["a"])


def test_progress_is_reported_until_the_end(matches) -> None:
    calls = []
    bootstrap({"a": [matches["bad"]]}, resamples=300, progress=lambda done, number: calls.append((done, number)))
    assert calls == sorted(calls)
    assert calls[-1] == (301, 301)


def bootstrap_squares(boxes_by_image: list[list[float]], classes: tuple[str, ...] = ("thing", "nothing")) -> Bootstrap:
    """Bootstrap of a detector that finds every second object, on images with squares of the given sides."""
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


def test_class_images_counts_each_image_once() -> None:
    boot = bootstrap_squares([[100.0, 90.0], [100.0], []])
    assert boot.class_images == {"thing": 2, "nothing": 0}


def test_interval_without_objects_is_nan_and_verdict_is_a_tie() -> None:
    boot = bootstrap_squares([[100.0], [100.0], [100.0], []])
    small = boot.difference("half", "none", "APs")
    assert np.isnan(small[:3]).all()
    assert small.verdict == "tie"
    assert np.isnan(boot.class_interval("half", "nothing")).all()
    large = boot.interval("half", "APl")
    assert large.value == pytest.approx(67 / 101)  # two of three objects: recalls up to 0.66
    assert 0 <= large.low <= large.value <= large.high <= 1


def test_interval_of_objects_in_a_single_image_is_nan() -> None:
    boot = bootstrap_squares([[100.0], [100.0, 10.0, 10.0], [100.0]])
    small = boot.difference("half", "none", "APs")
    assert small.value > 0
    assert math.isnan(small.low)
    assert math.isnan(small.high)
    assert small.verdict == "tie"


def test_no_images_no_runs_and_no_resamples() -> None:
    assert np.isnan(bootstrap_squares([]).interval("half", "AP")).all()
    assert bootstrap({}).values == {}
    without = bootstrap({"a": [perfect_matches()]}, resamples=0).interval("a", "AP")
    assert without.value == pytest.approx(1.0)
    assert math.isnan(without.low)


def perfect_matches() -> Matches:
    truth = simulate_ground_truth(np.random.default_rng(0), 5)
    perfect = Predictions(truth.image_index, truth.boxes, np.ones(len(truth.boxes)), truth.labels)
    return collect_matches(truth, perfect)


def test_stretch_by_hand() -> None:
    resampled = np.append(np.arange(0, 101) / 100, np.nan)  # mean .5, percentiles .025 and .975
    # from tables: the 97.5% quantile is 3.1824 for Student's t with 3 degrees of freedom, 1.9600 for the normal
    low, high = stretched_interval(resampled, num_images=4)
    half_width = 0.475 * 3.1824 / 1.9600 * math.sqrt(4 / 3)
    assert (low, high) == pytest.approx((0.5 - half_width, 0.5 + half_width), abs=1e-4)
    assert stretched_interval(resampled, num_images=10**6) == pytest.approx((0.025, 0.975), abs=1e-4)
    assert np.isnan(stretched_interval(resampled, num_images=1)).all()


def test_bias_correction_by_hand() -> None:
    resampled = np.tile(np.linspace(0.55, 0.65, 101)[:, None], (1, len(KEYS)))  # mean .6, percentiles .5525 and .6475
    values = {"one": np.full((1, len(KEYS)), 0.5), "zero": np.zeros((1, len(KEYS)))}
    boot = Bootstrap((), np.full(len(KEYS), 10**6), values, {"one": resampled, "zero": 0 * resampled})
    # .1 too high on resamples, so the interval is shifted by -.2; it includes the value itself
    assert boot.interval("one", "AP") == pytest.approx((0.5, 0.3525, 0.5), abs=1e-4)
    assert boot.difference("one", "zero", "AP")[:3] == pytest.approx((0.5, 0.3525, 0.6475), abs=1e-4)
    assert boot.difference("zero", "one", "AP")[:3] == pytest.approx((-0.5, -0.6475, -0.3525), abs=1e-4)


def test_runs_on_other_images_are_an_input_error(scene, matches) -> None:
    fewer = scene["truth"].of_images(np.arange(39))
    kept = scene["bad"].image_ids < 39
    bad = scene["bad"]
    other = Predictions(bad.image_ids[kept], bad.boxes[kept], bad.scores[kept], bad.labels[kept])
    with pytest.raises(InputError, match="b: was evaluated on other images or objects"):
        bootstrap({"a": [matches["bad"]], "b": [collect_matches(fewer, other)]})
    with pytest.raises(InputError, match="b: has no run"):
        bootstrap({"a": [matches["bad"]], "b": []})
