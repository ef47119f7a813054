"""Keys that tell frames in which somebody is hidden, taught without a label: by what covering a person does to their feature.

Frames of people are covered as in `pipeline.training.occlusion`, all but the head or in part. How near the feature of a covered
frame stays to that of the uncovered one says how much of the person it still holds,

    kept = (cosine - NOTHING) / (ALL - NOTHING), cut to 0..1

and a logistic regression learns it from the covered feature alone, r(f) = <w, f> + b, f as the head takes features. A head's heat
is <q, k>; with q' its mean query vector the keys become

    k' = OLD k + r(f) q' / |q'|^2

so that every heat gains about r: widths, LSTM and values stay as they are. Half of the old judgement is kept, because it also
knows what no cover shows, such as people who are cut off by the picture's edge or walk behind things of a scene.
"""

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import minimize

from pipeline.backbone.runtime import Backbone
from pipeline.coattention.network import Coattention
from pipeline.coattention.visibility import mean_query
from pipeline.distillation.people import People
from pipeline.errors import UsageError
from pipeline.training.augmentation import AugmentationSettings, augment
from pipeline.training.occlusion import HEAD, KINDS, hide_stretch

OLD = 0.5  # share of the old keys
NOTHING, ALL = 0.45, 0.9  # cosine with the uncovered frame at which nothing, and all, of the person is kept
PARTLY = (0.25, 0.85)  # share of the height that stays visible where a frame is covered in part
PENALTY = 1e-4  # of the squared length of w
CAMERA = AugmentationSettings(occluder=0.0, erase=0.0)  # what is done to half of the frames, covered or not
COPIES = 4  # of a frame: uncovered, hidden twice, covered in part
SEGMENT = 8  # frames that a query vector is taken of

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class TaughtKeys:
    """A head with new keys, and how often an uncovered frame of people held out is judged better than a hidden one of theirs.

    before, after: 0.5 is chance; None where nobody is held out. frames: learned from, copies not counted.
    """

    head: Coattention
    frames: int
    before: float | None
    after: float | None


def teach_keys(
    head: Coattention,
    people: People,
    backbone: Backbone,
    held_out_share: float = 0.2,
    seed: int = 0,
    report: Callable[[int, int], None] = lambda done, total: None,
) -> TaughtKeys:
    """A copy of the head that judges frames by what covering people does to the backbone's features.

    The same people, backbone and seed give the same head on one machine. report: candidates done, and in all. Raises UsageError
    where there are fewer than two candidates to learn from, and for a head that gives all frames the same heat.
    """
    learning, held_out = people.split(held_out_share)
    if len(learning) < 2:
        raise UsageError("keys are learned from at least two candidates; lower --held-out-share or give more videos")
    random = np.random.default_rng(seed)
    parts: dict[int, Floats] = {}
    for done, (candidate, images) in enumerate(_covered(people, [*learning, *held_out], set(learning), random), start=1):
        parts[candidate] = backbone.embed(images).astype(np.float32).reshape(-1, COPIES, backbone.spec.dim)
        report(done, len(people.candidates))
    features = np.concatenate([parts[candidate] for candidate in learning])  # [n, COPIES, D]
    query = _mean_query(head, [parts[candidate] for candidate in learning])
    if not query.any():
        raise UsageError("the head's query vectors are 0, so it gives all frames the same heat; train it first (jobs.train)")
    taught = with_judgement(head, *_regression(_normalised(head, features), kept(features)), query)
    tested = np.concatenate([parts[candidate] for candidate in held_out]) if held_out else None
    before, after = (None if tested is None else told_apart(one, tested) for one in (head, taught))
    return TaughtKeys(taught, len(features), before, after)


def kept(features: Floats) -> Floats:
    """How much of a person each copy's feature holds, 0..1, [n, COPIES]; features: [n, COPIES, D], the uncovered frame first."""
    unit = features / np.linalg.norm(features, axis=-1, keepdims=True)
    cosine = np.einsum("ncd,nd->nc", unit, unit[:, 0])
    return np.clip((cosine - NOTHING) / (ALL - NOTHING), 0, 1).astype(np.float32)


def with_judgement(head: Coattention, weight: Floats, bias: float, query: Floats) -> Coattention:
    """A copy of the head whose keys are the old ones by OLD and give r = <weight, f> + bias under the query vector.

    weight: [D]; query: [d_k], not 0.
    """
    taught = copy.deepcopy(head)
    along = torch.from_numpy(query / np.square(query).sum())
    with torch.no_grad():
        taught.key.weight.mul_(OLD).add_(along[:, None] * torch.from_numpy(weight)[None])
        taught.key.bias.mul_(OLD).add_(along * bias)
    return taught


def told_apart(head: Coattention, features: Floats) -> float:
    """Share of pairs, an uncovered frame and a hidden one, in which the uncovered one has more heat under the mean query."""
    query = torch.from_numpy(_mean_query(head, [features]))
    with torch.no_grad():
        heat = (head.keys(torch.from_numpy(features)) @ query).numpy()  # [n, COPIES]
    hidden = np.sort(heat[:, 1:3].ravel())
    return float(np.searchsorted(hidden, heat[:, 0]).mean() / len(hidden))


def _covered(
    people: People, candidates: list[int], learning: set[int], random: np.random.Generator
) -> Iterator[tuple[int, NDArray[np.uint8]]]:
    """Each candidate and its frames with their copies, uint8 [COPIES * n, h, w, 3]. Who covers them is of the same part."""
    for candidate in candidates:
        same_part = [one for one in candidates if (one in learning) == (candidate in learning)]
        images = []
        for number in range(people.candidates[candidate].frames):
            frame = people.frame(candidate, number)[None]
            one = int(random.choice(same_part))
            other = people.frame(one, int(random.integers(people.candidates[one].frames)))[None]
            copies = [frame]
            for kind, top in ((random.choice(KINDS), HEAD), (_mostly_blocks(random), HEAD), (random.choice(KINDS), PARTLY)):
                copies.append(hide_stretch(frame, random, 1.0, str(kind), other, top)[0])
            shown = np.concatenate(copies)
            images.append(augment(shown, random, CAMERA)[0] if random.random() < 0.5 else shown)
        yield candidate, np.concatenate(images)


def _mostly_blocks(random: np.random.Generator) -> str:
    return "block" if random.random() < 0.6 else str(random.choice(KINDS))


def _normalised(head: Coattention, features: Floats) -> NDArray[np.float64]:
    """Features [n, COPIES, D] as the head takes them, [n * COPIES, D]."""
    with torch.no_grad():
        return head.normalised(torch.from_numpy(features)).double().numpy().reshape(-1, features.shape[-1])


def _mean_query(head: Coattention, videos: list[Floats]) -> Floats:
    """The mean query vector [d_k] over segments of uncovered frames."""
    segments = []
    for features in videos:
        rows = np.arange(-(-len(features) // SEGMENT) * SEGMENT).reshape(-1, SEGMENT)
        segments.append(features[np.minimum(rows, len(features) - 1), 0])  # [S, SEGMENT, D]
    return mean_query(head, np.concatenate(segments))


def _regression(x: NDArray[np.float64], y: Floats) -> tuple[Floats, float]:
    """(w, b) of the logistic regression of y [n, COPIES] on x [n * COPIES, D], by L-BFGS in float64."""
    labels = y.astype(np.float64).ravel()

    def loss(parameters: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        weight, logits = parameters[:-1], x @ parameters[:-1] + parameters[-1]
        error = (1 / (1 + np.exp(-logits)) - labels) / len(x)
        value = (np.logaddexp(0, logits) - labels * logits).mean() + PENALTY * weight @ weight
        return float(value), np.append(x.T @ error + 2 * PENALTY * weight, error.sum())

    found = minimize(loss, np.zeros(x.shape[1] + 1), jac=True, method="L-BFGS-B", options={"maxiter": 500})
    return found.x[:-1].astype(np.float32), float(found.x[-1])
