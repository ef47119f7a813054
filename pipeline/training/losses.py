"""A batch's comparison -> the loss, term by term (METHOD section 4). Every function is plain torch and differentiable."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.coattention.network import Comparison
from pipeline.training.settings import TrainingSettings


@dataclass(frozen=True)
class Labels:
    """Of B segments from V = B / S tracklets, tracklet after tracklet.

    person: int64 [B], classes from 0. counts: bool [B, B], pairs that take part. hidden: bool [B, T].
    """

    person: Tensor
    counts: Tensor
    hidden: Tensor

    @property
    def same(self) -> Tensor:
        return self.person[:, None] == self.person[None]  # [B, B]


class IdentityNeck(nn.Module):
    """BNNeck (Luo et al., 2019): batch normalisation without a shift, then one output a person. Used in training only."""

    def __init__(self, width: int, people: int) -> None:
        super().__init__()
        self.normalise = nn.BatchNorm1d(width)
        self.normalise.bias.requires_grad_(False)
        self.classify = nn.Linear(width, people, bias=False)
        nn.init.normal_(self.classify.weight, std=0.001)

    def forward(self, encodings: Tensor) -> Tensor:
        return self.classify(self.normalise(encodings))


def pair_loss(logits: Tensor, same: Tensor, counts: Tensor) -> Tensor:
    """Binary cross-entropy on pair logits [N, K], the pairs of either class weighing the same in all."""
    terms = [
        F.binary_cross_entropy_with_logits(logits[chosen], label[chosen])
        for label, chosen in ((same.to(logits.dtype), same & counts), (same.to(logits.dtype), ~same & counts))
        if chosen.any()
    ]
    return torch.stack(terms).mean() if terms else logits.sum() * 0


def video_logits(logits: Tensor, segments: int, ratio: float) -> Tensor:
    """Mean of the top share of the S x S pair logits of each pair of tracklets: [V * S, V * S] -> [V, V].

    A search takes the mean of scores; the logit orders pairs as the score does and its gradient does not vanish.
    """
    videos = len(logits) // segments
    blocks = logits.view(videos, segments, videos, segments).transpose(1, 2).reshape(videos, videos, -1)
    top = max(1, -int(-round(ratio * segments**2, 6) // 1))
    return blocks.topk(top, dim=-1).values.mean(dim=-1)


def ranking_loss(scores: Tensor, same: Tensor, counts: Tensor, temperature: float) -> Tensor:
    """For every matching pair of videos, cross-entropy of its score against those of all other people; [V, V] each."""
    scaled = scores / temperature
    others = scaled.masked_fill(same | ~counts, -torch.inf).logsumexp(dim=1, keepdim=True)  # [V, 1]
    positive = same & counts
    if not positive.any():
        return scores.sum() * 0
    return F.softplus(others - scaled)[positive].mean()  # -log(e^p / (e^p + sum e^n))


def triplet_loss(encodings: Tensor, person: Tensor, counts: Tensor, margin: float) -> Tensor:
    """Batch-hard (Hermans et al., 2017): the farthest of the same person against the nearest of another, encodings [B, d]."""
    distance = torch.cdist(encodings, encodings)  # [B, B]
    same = person[:, None] == person[None]
    farthest = distance.masked_fill(~(same & counts), -torch.inf).amax(dim=1)
    nearest = distance.masked_fill(same | ~counts, torch.inf).amin(dim=1)
    usable = farthest.isfinite() & nearest.isfinite()
    return F.relu(farthest - nearest + margin)[usable].mean() if usable.any() else encodings.sum() * 0


def attention_loss(compared: Comparison, hidden: Tensor, same: Tensor, counts: Tensor) -> Tensor:
    """-log of the attention that visible frames get, over segments that have both kinds; hidden: bool [B, T].

    Own attention, and that of the same person's other segments; what a segment of somebody else looks at is not judged.
    """
    both = hidden.any(dim=1) & ~hidden.all(dim=1)  # [B]
    if not both.any():
        return compared.target_attention.sum() * 0
    visible = (~hidden).to(compared.target_attention.dtype)
    own = -(compared.target_attention * visible).sum(dim=-1).clamp_min(1e-6).log()[both].mean()
    judged = same & counts & both[None]
    if not judged.any():
        return own
    pairs = torch.einsum("nkt,kt->nk", compared.candidate_attention, visible)
    return (own - pairs.clamp_min(1e-6).log()[judged].mean()) / 2


def batch_loss(
    compared: Comparison, labels: Labels, neck: IdentityNeck, settings: TrainingSettings
) -> tuple[Tensor, dict[str, Tensor]]:
    """The weighted sum of all terms that are on, and each term unweighted, by name."""
    segments, same, counts = settings.segments, labels.same, labels.counts
    encodings = compared.target_encodings.float()
    logits = compared.logits.float()
    terms: dict[str, tuple[float, Tensor]] = {}
    if settings.pair_weight:
        terms["pair"] = settings.pair_weight, pair_loss(logits, same, counts)
    if settings.video_weight:
        scores = video_logits(logits, segments, settings.ratio)
        every = (slice(None, None, segments),) * 2
        terms["video"] = settings.video_weight, ranking_loss(scores, same[every], counts[every], settings.video_temperature)
    if settings.identity_weight:
        smoothed = F.cross_entropy(neck(encodings), labels.person, label_smoothing=settings.label_smoothing)
        terms["identity"] = settings.identity_weight, smoothed
    if settings.triplet_weight:
        terms["triplet"] = settings.triplet_weight, triplet_loss(encodings, labels.person, counts, settings.triplet_margin)
    if settings.attention_weight:
        terms["attention"] = settings.attention_weight, attention_loss(compared, labels.hidden, same, counts)
    total = logits.sum() * 0
    for weight, term in terms.values():
        total = total + weight * term
    return total, {name: term.detach() for name, (_, term) in terms.items()}
