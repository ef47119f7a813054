"""What an evaluation says, to people: as text for a terminal and as a page, one HTML file that opens offline.

Both show what evaluation.json holds and compute nothing but where lines go, so they can be made again from that file. The page
has no script and asks nothing of the network.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

import jinja2

WIDTH, HEIGHT = 640, 340  # of the CMC chart, in units of its viewBox
SMALL_WIDTH, SMALL_HEIGHT = 360, 190  # of a histogram
LEFT, RIGHT, TOP, BOTTOM = 46, 14, 12, 40  # margins in which the axes' words stand
CURVE_RANKS = 20
WORST_PAIRS = 12  # camera pairs that are open at once; the others unfold
PRINTED_PAIRS = 5  # camera pairs of the text


@dataclass(frozen=True)
class _Tick:
    """A mark on an axis: where it is, in units of the viewBox, and what it says."""

    at: float
    words: str


@dataclass(frozen=True)
class _Line:
    """A curve. points: as SVG takes them; style: number of its colour; dashed: for normalised baselines."""

    name: str
    points: str
    style: int
    dashed: bool


@dataclass(frozen=True)
class _Curves:
    """The CMC chart."""

    lines: tuple[_Line, ...]
    x: tuple[_Tick, ...]
    y: tuple[_Tick, ...]


@dataclass(frozen=True)
class _Histogram:
    """Scores of one method. same, different: outlines as SVG takes them; threshold: where it stands, None outside the axis."""

    name: str
    same: str
    different: str
    x: tuple[_Tick, ...]
    threshold: float | None


def render_evaluation(document: Mapping[str, Any]) -> str:
    """The page of an evaluation document, as `jobs.evaluate` writes it to evaluation.json: one HTML file, complete in itself."""
    methods = document["methods"]
    first = next(iter(methods))
    asked = document["settings"]["false_match_rate"]
    points = {name: _asked_for(method["verification"], asked) for name, method in methods.items()}
    return _template().render(
        document=document,
        methods=methods,
        first=first,
        facts=_facts(document),
        curves=_curves(methods),
        histograms=[_histogram(name, method["histogram"], points[name]) for name, method in methods.items()],
        verification=points,
        open_set=methods[first]["open_set"],
        pairs=_camera_pairs(methods, first, document["difference"]["less"]),
        worst=WORST_PAIRS,
        probability_lines=probability_lines(document),
        less=document["difference"]["less"],
        width=WIDTH,
        height=HEIGHT,
        small_width=SMALL_WIDTH,
        small_height=SMALL_HEIGHT,
        left=LEFT,
        right=RIGHT,
        top=TOP,
        bottom=BOTTOM,
    )


@cache
def _template() -> jinja2.Template:
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"share": share, "interval": interval, "signed": signed, "spread": spread}
    return environment.from_string(resources.files("pipeline.evaluation").joinpath("report.html.j2").read_text("utf-8"))


def share(value: float | None) -> str:
    """A share of 1 to three digits; a dash where there is none."""
    return "–" if value is None or value != value else f"{value:.3f}"


def signed(value: float) -> str:
    """A difference of shares with its sign."""
    return f"{value:+.3f}"


def interval(ends: Sequence[float] | None, sign: bool = False) -> str:
    """Both ends of an interval; nothing where none was asked for."""
    if ends is None:
        return ""
    return f"{ends[0]:+.3f} … {ends[1]:+.3f}" if sign else f"{ends[0]:.3f}–{ends[1]:.3f}"


def spread(values: Sequence[float | None]) -> str:
    """Mean and standard deviation over the splits that have a figure."""
    known = [value for value in values if value is not None]
    mean = sum(known) / len(known)
    deviation = (sum((value - mean) ** 2 for value in known) / max(1, len(known) - 1)) ** 0.5
    return f"{mean:.3f} ± {deviation:.3f}"


def _facts(document: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What was judged and how, as (term, words)."""
    settings = document["settings"]
    protocol = [f"part {settings['part']}", f"protocol {settings['protocol']}", f"split {settings['split']}"]
    pairs = "all segment pairs, the better and the more visible the more"
    if settings["ratio"] is not None:
        pairs = f"{settings['aggregate']} of the top {settings['ratio']:g} of the segment pairs"
    pooled = f"{pairs}; {settings['normalise']} normalisation"
    facts = [
        ("Data", f"{document['name']} ({document['data']})"),
        ("Protocol", ", ".join(protocol)),
        ("Made", document["made_at"]),
        ("Model", document["model"]),
        ("Index version", document["index_version"]),
        ("Segments", f"{settings['segment_length']} frames, stride {settings['stride']}"),
        ("Video score", pooled),
        ("Intervals", f"95 %, {settings['bootstrap']} resamples of persons" if settings["bootstrap"] else "none"),
    ]
    return [*facts, *(("Note", note) for note in document["notes"])]


def _asked_for(points: Sequence[Mapping[str, Any]], rate: float) -> Mapping[str, Any] | None:
    return next((point for point in points if point["asked"] == rate), None)


def _across(value: float, low: float, high: float, width: float) -> float:
    return round(LEFT + (value - low) / (high - low) * (width - LEFT - RIGHT), 1)


def _up(value: float, low: float, high: float, height: float) -> float:
    return round(height - BOTTOM - (value - low) / (high - low) * (height - BOTTOM - TOP), 1)


def _curves(methods: Mapping[str, Mapping[str, Any]]) -> _Curves:
    """CMC curves from rank 1 to CURVE_RANKS; the axis begins at the tenth below the lowest."""
    lowest = min(method["curve"][0] for method in methods.values())
    low = min(int(lowest * 10) / 10, 0.9)
    bases = list(dict.fromkeys(name.partition(",")[0] for name in methods))
    lines = []
    for name, method in methods.items():
        points = [
            f"{_across(rank, 1, CURVE_RANKS, WIDTH)},{_up(value, low, 1, HEIGHT)}"
            for rank, value in enumerate(method["curve"][:CURVE_RANKS], start=1)
        ]
        base, _, addition = name.partition(",")
        lines.append(_Line(name, " ".join(points), bases.index(base), bool(addition)))
    tenths = range(round(low * 10), 11)
    step = 2 if len(tenths) > 6 else 1
    return _Curves(
        tuple(lines),
        tuple(_Tick(_across(rank, 1, CURVE_RANKS, WIDTH), str(rank)) for rank in (1, 5, 10, 15, 20)),
        tuple(_Tick(_up(tenth / 10, low, 1, HEIGHT), f"{tenth / 10:.1f}") for tenth in tenths if (10 - tenth) % step == 0),
    )


def _histogram(name: str, counts: Mapping[str, Sequence[float]], point: Mapping[str, Any] | None) -> _Histogram:
    edges = counts["edges"]
    low, high = edges[0], edges[-1]
    highest = max(*counts["same"], *counts["different"])

    def outline(shares: Sequence[float]) -> str:
        floor = _up(0, 0, 1, SMALL_HEIGHT)
        points = [f"{_across(low, low, high, SMALL_WIDTH)},{floor}"]
        for left, right, value in zip(edges, edges[1:], shares, strict=False):
            top = _up(value / highest, 0, 1, SMALL_HEIGHT)
            points += [f"{_across(left, low, high, SMALL_WIDTH)},{top}", f"{_across(right, low, high, SMALL_WIDTH)},{top}"]
        return " ".join([*points, f"{_across(high, low, high, SMALL_WIDTH)},{floor}"])

    inside = point is not None and low <= point["threshold"] <= high
    return _Histogram(
        name,
        outline(counts["same"]),
        outline(counts["different"]),
        tuple(_Tick(_across(value, low, high, SMALL_WIDTH), f"{value:.3g}") for value in (low, (low + high) / 2, high)),
        _across(point["threshold"], low, high, SMALL_WIDTH) if point is not None and inside else None,
    )


def _camera_pairs(methods: Mapping[str, Mapping[str, Any]], first: str, less: str) -> list[dict[str, Any]]:
    """Rows of the camera table, worst rank-1 first, with the baseline's figures beside them."""
    other = {(pair["query_camera"], pair["gallery_camera"]): pair for pair in methods[less]["camera_pairs"]}
    rows = [{**pair, "other": other[pair["query_camera"], pair["gallery_camera"]]} for pair in methods[first]["camera_pairs"]]
    return sorted(rows, key=lambda row: (row["rank_1"], row["mean_ap"]))


# ---- text


def evaluation_text(document: Mapping[str, Any]) -> str:
    """The figures of a document as tables for a terminal."""
    methods = document["methods"]
    first, quality = next(iter(methods.items()))
    lines = [
        f"{document['name']}: {quality['queries']} queries, {quality['unmatched']} without a match elsewhere, "
        f"{document['persons']} persons, {document['gallery']} videos in the gallery, {document['rejected']} inputs rejected",
        f"model {document['model']}" + (" (untrained head)" if document["untrained"] else ""),
        *(f"note: {note}" for note in document["notes"]),
    ]
    if document["missing"]:
        lines.append(f"note: {document['missing']} videos that the protocol names are not in the index")
    ranks = "".join(f"{f'rank-{rank}':<9}" for rank in list(quality["cmc"])[1:])
    lines.append(f"{'':<34}{'rank-1':<21}{ranks}{'mAP':<21}mINP")
    for name, method in methods.items():
        rank_1, *others = method["cmc"].values()
        first_cell, ap_cell = (
            _with_interval(value, method["intervals"][of]) for value, of in ((rank_1, "rank_1"), (method["mean_ap"], "mean_ap"))
        )
        cells = "".join(f"{share(value):<9}" for value in others)
        lines.append(f"{name:<34}{first_cell:<21}{cells}{ap_cell:<21}{share(method['mean_inp'])}")
    lines += [*_difference_lines(document), *_camera_lines(quality, first), *_threshold_lines(document)]
    return "\n".join([*lines, *probability_lines(document)])


def probability_lines(document: Mapping[str, Any]) -> list[str]:
    """What searches say of their own certainty, and whether it is true."""
    judged = document["probabilities"]
    numbers = judged["numbers"]
    if numbers is None:
        said = [f"probabilities: none, {judged['words']}"]
        for one in judged["strengths"]:
            leads = f"{one['first']} first leads, {one['first_right']} of them right"
            said.append(f"  {one['word']}: {one['pairs']} pairs, {one['right']} of one person; {leads}")
        return said
    ratio = f" ({numbers['expected'] / numbers['matches']:.2f})" if numbers["matches"] else ""
    return [
        f"probabilities, from {judged['words']}: calibration error {share(numbers['ece'])},",
        f"  they add up to {numbers['expected']:.1f} where {numbers['matches']} pairs show one person{ratio},",
        f"  of first leads {share(numbers['first'])} where {share(numbers['first_right'])} are right,",
        f"  of 'none of these' {share(numbers['none'])} where {share(numbers['absent'])} are absent "
        f"({share(numbers['none_absent'])} for them, {share(numbers['none_present'])} for the others)",
    ]


def _with_interval(value: float, ends: Sequence[float] | None) -> str:
    return share(value) + (f" ({interval(ends)})" if ends else "")


def _difference_lines(document: Mapping[str, Any]) -> list[str]:
    difference, words = document["difference"], []
    for name, label in (("rank_1", "rank-1"), ("mean_ap", "mAP")):
        value, ends = difference[name]["value"], difference[name]["interval"]
        words.append(f"{label} {signed(value)}" + (f" ({interval(ends, sign=True)})" if ends else ""))
    lines = [f"{difference['of']} less {difference['less']}: {', '.join(words)}"]
    if document["settings"]["bootstrap"]:
        lines.append("in brackets: 95 % intervals over persons; of the difference, on the same resamples")
    if document["splits"] > 1:
        lines.append(f"over {document['splits']} splits, mean and standard deviation:")
        for name, method in document["methods"].items():
            parts = [f"{label} {spread(method['by_split'][of])}" for of, label in (("rank_1", "rank-1"), ("mean_ap", "mAP"))]
            lines.append(f"  {name:<32}{', '.join(parts)}")
    return lines


def _camera_lines(quality: Mapping[str, Any], name: str) -> list[str]:
    pairs = sorted(quality["camera_pairs"], key=lambda pair: (pair["rank_1"], pair["mean_ap"]))
    lines = [f"{name}, worst of {len(pairs)} camera pairs (query camera to gallery camera):"]
    for pair in pairs[:PRINTED_PAIRS]:
        cameras = f"{pair['query_camera']} to {pair['gallery_camera']}"
        figures = f"rank-1 {share(pair['rank_1'])}, mAP {share(pair['mean_ap'])}"
        lines.append(f"  {cameras:<24} {figures}, {pair['queries']} queries")
    return lines


def _threshold_lines(document: Mapping[str, Any]) -> list[str]:
    """The prefilter's recall, the threshold for the false-match rate and the open set."""
    lines = []
    if document["shortlists"]:
        lines.append("of the ten best videos and of all matches, a search scores with a shortlist of")
        for recall in document["shortlists"]:
            kept = f"{share(recall['top_10'])} and {share(recall['matches'])}"
            lines.append(f"  {recall['size']:>6}  {kept}  ({recall['videos']:.0f} videos)")
    quality, settings = next(iter(document["methods"].values())), document["settings"]
    if point := _asked_for(quality["verification"], settings["false_match_rate"]):
        others, passed = point["different"], f"{point['false_match_rate']:.3g}"
        lines.append(
            f"threshold for a false-match rate of {point['asked']:g}: {point['threshold']:.6g}; it passes "
            f"{share(point['true_match_rate'])} of {point['same']} pairs of the same person, {passed} of {others} others"
        )
        if not point["reachable"]:
            lines.append(f"  {others} pairs cannot show a rate below {1 / others:.2g}; this threshold passes none of them")
    if point := _asked_for(quality["open_set"], settings["false_alarm_rate"]):
        lines.append(
            f"people who are not in the gallery: with a threshold of {point['threshold']:.6g} on the best score, "
            f"{share(point['false_positive_identification'])} of {point['absent']} searches for them still give an answer,"
        )
        found = share(point["detection_and_identification"])
        lines.append(f"  and {found} of {point['present']} searches for people who are there give the right one at rank 1")
    return lines
