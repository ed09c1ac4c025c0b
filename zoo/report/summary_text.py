"""Sentences of the report, shared by HTML and Markdown."""

from zoo.report.entries import Entry, find_entries
from zoo.report.number_format import format_ap, format_interval, format_signed
from zoo.report.results import Difference, Pair, Results
from zoo.report.tables.pairwise import find_difference


def headline(results: Results) -> str:
    """Leading entry, its AP and lead, whether the lead is significant, the data and the budget, as one sentence."""
    entries = [entry for entry in find_entries(results) if entry.metric("AP") is not None]
    num_failed = sum(run.status == "failed" for run in results.runs)
    failures = f" Failed: {num_failed} of {len(results.runs)} runs." if num_failed else ""
    if not entries:
        return f"No run on {_name_data(results)} has an AP to compare.{failures}"
    leader, *others = entries
    where = f"On {_name_data(results)}, {leader.label}"
    training = _describe_training(results.budget, entries)
    if not others:
        return f"{where} reaches AP\u00a0{_score(leader)}{training and f', {training}'}.{failures}"
    training = training and f"; each {training}"
    ties, behind = _sort_by_verdict(results.pairs, leader, others)
    if not ties and not behind:
        return f"{where} {_lead_without_intervals(leader, others)}{training}.{failures}"
    return f"{where} leads with AP\u00a0{_score(leader)}, {_relate(ties, behind, len(others))}{training}.{failures}"


def _describe_training(budget: str, entries: list[Entry]) -> str:
    """Budget and seeds of the entries, except those of which only predictions are known; "" if those are all."""
    trained = [entry for entry in entries if not entry.is_external]
    seeds = sorted({run.seed for entry in trained for run in entry.runs})
    if not seeds:
        return ""
    seeds_text = f"seed {seeds[0]}" if len(seeds) == 1 else f"mean over seeds {', '.join(map(str, seeds))}"
    external = [entry.label for entry in entries if entry.is_external]
    exception = f", except {join_words(external)}, of which only predictions are known" if external else ""
    return f"{f'trained for {budget}, ' if budget else ''}{seeds_text}{exception}"


def interval_notes(entries: list[Entry]) -> str:
    """Limits of the pairwise verdicts: variation between seeds, and several comparisons at once."""
    seed_note = (
        "Metrics are averaged over seeds; the first table gives their range. A difference smaller than that range may"
        " come from the randomness of training, whatever its interval."
        if any(len(entry.runs) > 1 for entry in entries)
        else "Of each detector one training is known: the intervals do not include the variation between training runs,"
        " which several seeds would show."
    )
    chance = "of twenty pairs of equally good detectors, about one comes out better or worse by chance"
    return f"{seed_note} Verdicts are not corrected for multiple comparisons: {chance}."


def evaluated_images(results: Results) -> str:
    """`test images`, or `validation images` where there is no test split."""
    return "test images" if "test" in results.data else "validation images" if "val" in results.data else "images"


def reproduction_facts(results: Results) -> list[tuple[str, str]]:
    """(name, value) of what reproduction needs besides command and configurations: data, budget, seeds, versions."""
    order = ["name", "train", "val", "test"]  # then the rest, in file order
    keys = sorted(results.data, key=lambda key: order.index(key) if key in order else len(order))
    seeds = sorted({run.seed for run in results.runs if not run.is_external})
    resamples = [("Intervals", f"{results.resamples:,} resamples of the {evaluated_images(results)}, the same for all")]
    facts = [
        ("Data", ", ".join(f"{key} {results.data[key]}" if key != "name" else f"{results.data[key]}" for key in keys)),
        *((f"Fingerprint, {split}", fingerprint) for split, fingerprint in results.fingerprints.items()),
        ("Budget", results.budget),
        ("Seeds" if len(seeds) > 1 else "Seed", ", ".join(map(str, seeds))),
        *(resamples if results.resamples else []),
        ("Hardware", results.hardware),
        ("Versions", ", ".join(f"{package} {version}" for package, version in results.versions.items())),
        ("Created", results.created),
    ]
    return [(name, value) for name, value in facts if value]


def join_words(words: list[str]) -> str:
    """`A`, `A and B`, `A, B and C`."""
    return " and ".join(filter(None, [", ".join(words[:-1]), *words[-1:]]))


def _sort_by_verdict(
    pairs: list[Pair], leader: Entry, others: list[Entry]
) -> tuple[list[tuple[Entry, Difference]], list[tuple[Entry, Difference]]]:
    """Entries that tie with the leader, and entries that it is better than, each in the given order."""
    ties: list[tuple[Entry, Difference]] = []
    behind: list[tuple[Entry, Difference]] = []
    for other in others:
        difference = find_difference(pairs, leader, other, "AP")
        if difference is not None:
            (behind if difference.verdict == "better" else ties).append((other, difference))
    return ties, behind


def _relate(ties: list[tuple[Entry, Difference]], behind: list[tuple[Entry, Difference]], num_others: int) -> str:
    tied = [f"{other.label} ({format_ap(other.metric('AP') or 0.0)}, behind by {_by(d)})" for other, d in ties]
    sentences = [f"a tie with {join_words(tied)}"] if tied else []
    if behind:
        nearest, difference = behind[0]
        if len(behind) == num_others == 1:
            beaten = nearest.label
        elif len(behind) == 1:
            beaten = f"{nearest.label} alone"
        else:
            all_of = "all others" if len(behind) == num_others else f"the other {len(behind)}"
            beaten = f"{all_of}, the nearest of them {nearest.label}"
        sentences.append(f"better than {beaten}{',' if len(behind) > 1 else ''} by {_by(difference)}")
    return ", and ".join(sentences)


def _by(difference: Difference) -> str:
    low, high = (format_signed(end).removeprefix("+") for end in (difference.low, difference.high))
    return f"{format_signed(difference.value).removeprefix('+')}\u00a0[{low},\u00a0{high}]"  # no line break inside


def _lead_without_intervals(leader: Entry, others: list[Entry]) -> str:
    score = format_ap(leader.metric("AP") or 0.0)
    level = [other.label for other in others if format_ap(other.metric("AP") or 0.0) == score]
    if level:
        return f"and {join_words(level)} lead level with AP {score}"
    second = others[0]
    second_score = second.metric("AP") or 0.0
    # Difference of the rounded values, so that it matches the two numbers printed.
    lead = format_ap(float(score) - round(second_score, 3))
    return f"leads with AP {score}, {lead} ahead of {second.label} ({format_ap(second_score)})"


def _score(entry: Entry) -> str:
    interval = entry.interval("AP")
    score = format_ap(entry.metric("AP") or 0.0)
    return f"{score}\u00a0{format_interval(interval)}".replace(", ", ",\u00a0") if interval else score


def _name_data(results: Results) -> str:
    name = results.data.get("name", "the data")
    number = results.data.get("test", results.data.get("val"))
    return f"{name}" if number is None else f"the {number} {evaluated_images(results)} of {name}"
