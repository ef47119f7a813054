"""The co-attention network: scores for all pairs of target and candidate segments, in torch.

This is the one definition that training uses and that the fast form in `scoring` must agree with. It follows US
2020/0134321 A1; numbers in [ ] are its paragraphs. Sizes in the shape comments:

    N target segments of T_p frames     K candidate segments of T_g frames
    D width of a frame feature          d_k, d_v width of a key, of a value
"""

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.errors import PipelineError, UsageError

DIFFERENT, SAME = 0, 1  # the two outputs of the classifier: different person, same person


@dataclass(frozen=True)
class CoattentionConfig:
    """Sizes and switches of the network.

    feature_width: D. key_width: d_k, which is also the width of the LSTM's state. value_width: d_v.
    normalise_features: frame features enter as unit vectors after `feature_mean` is taken off.
    normalise_values: values become unit vectors, as in the code of Chen et al. (CVPR 2018).
    normalisation: "sigmoid" of the output `SAME` [0052], or "softmax" over both outputs as in that code.
    negative_weight: keeps every weight of the squared difference below 0 (a larger difference, a lower score), which
        the prefilter builds on.
    unit_encodings: encodings of both sides become unit vectors before they are compared, so that with one weight for all
        dimensions the score is one of their cosine.
    slack: frames whose heat lies within it of the warmest frame's count alike, so that many good frames are averaged and the
        best is not taken for all of them. 0 is the application's own softmax.

    Raises UsageError for a width below 1, a switch that is no bool, a normalisation of another name and a slack below 0.
    """

    feature_width: int
    key_width: int = 128
    value_width: int = 128
    normalise_features: bool = True
    normalise_values: bool = False
    normalisation: Literal["sigmoid", "softmax"] = "sigmoid"
    negative_weight: bool = False
    unit_encodings: bool = False
    slack: float = 0.0

    def __post_init__(self) -> None:
        for name in ("feature_width", "key_width", "value_width"):
            width = getattr(self, name)
            if type(width) is not int or width < 1:
                raise UsageError(f"{name} must be a whole number of at least 1, not {width!r}")
        for name in ("normalise_features", "normalise_values", "negative_weight", "unit_encodings"):
            if type(getattr(self, name)) is not bool:
                raise UsageError(f"{name} must be true or false, not {getattr(self, name)!r}")
        if self.normalisation not in ("sigmoid", "softmax"):
            raise UsageError(f"normalisation must be sigmoid or softmax, not {self.normalisation!r}")
        if isinstance(self.slack, bool) or not isinstance(self.slack, int | float) or not 0 <= self.slack < math.inf:
            raise UsageError(f"slack must be a number of at least 0, not {self.slack!r}")


class Comparison(NamedTuple):
    """All pairs of target and candidate segments, and what their logits came from.

    logits: [N, K]. target_attention: [N, T_p], of the target's own frames. target_encodings: [N, d_v].
    candidate_attention: [N, K, T_g], what each query vector gives to each candidate frame.
    """

    logits: Tensor
    target_attention: Tensor
    target_encodings: Tensor
    candidate_attention: Tensor


class Coattention(nn.Module):
    """Keys, values and query vectors of frame features, and the score of every segment pair [0036-0054].

    Frame features come in any floating type and are taken to the network's own (float32, or float64 in tests of
    gradients). A segment that is padded repeats its last frame; the LSTM reads it so, and nothing attends to the repetitions
    where the numbers of real frames are given.

    agreement: [], used as max(agreement, 0): how much the attention of a candidate's frames follows their likeness to the
    target, besides the query vector. 0 is the application's own attention.
    """

    feature_mean: Tensor

    def __init__(self, config: CoattentionConfig) -> None:
        super().__init__()
        self.config = config
        self.register_buffer("feature_mean", torch.zeros(config.feature_width))
        self.lstm = nn.LSTM(config.feature_width, config.key_width, batch_first=True)
        self.query = nn.Linear(config.key_width, config.key_width)
        self.key = nn.Linear(config.feature_width, config.key_width)
        self.value = nn.Linear(config.feature_width, config.value_width)
        self.classifier = nn.Linear(config.value_width, 2)
        self.agreement = nn.Parameter(torch.zeros(()))

    def normalised(self, frame_features: Tensor) -> Tensor:
        """Frame features [..., D] as the linear maps take them; PipelineError if D is not the network's width."""
        if frame_features.shape[-1] != self.config.feature_width:
            raise PipelineError(
                f"this co-attention head takes frame features of width {self.config.feature_width}, "
                f"not {frame_features.shape[-1]}: use the backbone that it belongs to"
            )
        frame_features = frame_features.to(self.feature_mean.dtype)
        if not self.config.normalise_features:
            return frame_features
        return F.normalize(frame_features - self.feature_mean, dim=-1)  # [..., D]

    def keys(self, frame_features: Tensor) -> Tensor:
        """Keys [..., d_k] of frame features [..., D] [0044]."""
        return self.key(self.normalised(frame_features))

    def values(self, frame_features: Tensor) -> Tensor:
        """Values [..., d_v] of frame features [..., D] [0044]."""
        values = self.value(self.normalised(frame_features))  # [..., d_v]
        return F.normalize(values, dim=-1) if self.config.normalise_values else values

    def query_vectors(self, target: Tensor) -> Tensor:
        """Query vectors [N, d_k] of target segments [N, T_p, D]: a map of the LSTM's last hidden state [0044, 0056]."""
        _, (hidden, _) = self.lstm(self.normalised(target))  # [1, N, d_k]
        return self.query(hidden[0])  # [N, d_k]

    def attention(self, query_vectors: Tensor, keys: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Attention [..., T] that query vectors [..., d_k] give to frames with keys [..., T, d_k] [0046].

        Leading sizes broadcast: [N, d_k] with [N, T, d_k] is each segment under its own query vector,
        [N, 1, d_k] with [K, T, d_k] is every pair, [N, K, T]. lengths: int64 [...], the frames at a segment's start that are
        real, at least 1; padding after them gets 0. Without it, all frames are real.

        >>> network = Coattention(CoattentionConfig(feature_width=4, key_width=2, value_width=2))
        >>> network.attention(torch.zeros(1, 2), torch.ones(1, 4, 2), lengths=torch.tensor([2])).tolist()
        [[0.5, 0.5, 0.0, 0.0]]
        """
        heat = torch.einsum("...d,...td->...t", query_vectors, keys)  # [..., T]
        return _softmax(self.slackened(heat), lengths)

    def slackened(self, heat: Tensor) -> Tensor:
        """Heat [..., T] without what exceeds the warmest frame's less `slack`; padding repeats a frame, so it is no matter."""
        return torch.minimum(heat, heat.amax(dim=-1, keepdim=True) - self.config.slack) if self.config.slack else heat

    def encode(self, attention: Tensor, values: Tensor) -> Tensor:
        """Encodings [..., d_v]: values [..., T, d_v] averaged with attention [..., T] [0049], unit vectors if configured."""
        encodings = torch.einsum("...t,...td->...d", attention, values)
        return F.normalize(encodings, dim=-1) if self.config.unit_encodings else encodings

    def agreement_heat(self, encodings: Tensor, values: Tensor) -> Tensor:
        """What agreement adds to the heat of candidate frames, [N, K, T]: agreement * sum_d w_d (e_nd - v_ktd) ** 2.

        encodings: of the target, [N, d_v]; values: [K, T, d_v]. The part that is the same for all frames of a segment, the
        target's own square, is left out: it cancels in the softmax.
        """
        weight, _ = self.score_row()
        squares = values.square() @ weight  # [K, T]
        products = torch.einsum("nd,ktd->nkt", encodings * weight, values)  # [N, K, T]
        return self.agreement.clamp_min(0) * (squares - 2 * products)

    def score_row(self) -> tuple[Tensor, Tensor]:
        """The row w [d_v] and the bias c [] of which the score is sigmoid(c + sum_d w_d * difference_d ** 2) [0052].

        Softmax over two outputs is the sigmoid of their difference, so one row serves both normalisations: W[SAME]
        for the sigmoid (the other output then takes no part), W[SAME] - W[DIFFERENT] for the softmax. With
        `negative_weight` that row r is stored unconstrained and w = -softplus(r). A batch normalisation ahead of the
        full connection, as the authors' code has, folds into w and c.
        """
        weight, bias = self.classifier.weight[SAME], self.classifier.bias[SAME]  # [d_v], []
        if self.config.normalisation == "softmax":
            weight, bias = weight - self.classifier.weight[DIFFERENT], bias - self.classifier.bias[DIFFERENT]
        return (-F.softplus(weight) if self.config.negative_weight else weight), bias

    def compare(
        self,
        target: Tensor,
        candidate: Tensor,
        target_lengths: Tensor | None = None,
        candidate_lengths: Tensor | None = None,
    ) -> Comparison:
        """Target [N, T_p, D] against candidate segments [K, T_g, D]; both may be the same tensor, as in training.

        target_lengths, candidate_lengths: int64 [N] and [K], the real frames of each segment as `attention` takes them.
        """
        keys, values = self.keys(target), self.values(target)  # [N, T_p, d_k], [N, T_p, d_v]
        query_vectors = self.query_vectors(target)  # [N, d_k]
        target_attention = self.attention(query_vectors, keys, target_lengths)  # [N, T_p]
        target_encodings = self.encode(target_attention, values)  # [N, d_v]

        if candidate is not target:
            keys, values = self.keys(candidate), self.values(candidate)  # [K, T_g, d_k], [K, T_g, d_v]
        heat = self.slackened(torch.einsum("nd,ktd->nkt", query_vectors, keys))  # [N, K, T_g]
        heat = heat + self.agreement_heat(target_encodings, values)
        candidate_attention = _softmax(heat, candidate_lengths)  # [N, K, T_g]
        candidate_encodings = self.encode(candidate_attention, values)  # [N, K, d_v]

        difference = target_encodings[:, None] - candidate_encodings  # [N, K, d_v]
        weight, bias = self.score_row()
        logits = bias + difference.square() @ weight  # [N, K]
        return Comparison(logits, target_attention, target_encodings, candidate_attention)

    def pair_logits(self, target: Tensor, candidate: Tensor) -> Tensor:
        """Logits [N, K] of target [N, T_p, D] against candidate segments [K, T_g, D]; their sigmoid is the score."""
        return self.compare(target, candidate).logits

    def forward(self, target: Tensor, candidate: Tensor) -> Tensor:
        """Scores [N, K] in 0..1 of target segments [N, T_p, D] against candidate segments [K, T_g, D] [0052]."""
        return self.pair_logits(target, candidate).sigmoid()


def _softmax(heat: Tensor, lengths: Tensor | None) -> Tensor:
    """Attention of heat [..., T], over the first `lengths` [...] frames of each segment."""
    if lengths is not None:
        padding = torch.arange(heat.shape[-1], device=heat.device) >= lengths[..., None]  # [..., T]
        heat = heat.masked_fill(padding, -torch.inf)
    return heat.softmax(dim=-1)
