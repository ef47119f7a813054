"""What training is told: one frozen dataclass, of which every term can be switched off."""

from dataclasses import dataclass, fields

from pipeline.errors import UsageError


@dataclass(frozen=True)
class TrainingSettings:
    """How a head is trained. A weight of 0 switches its term off.

    Batches: people P, tracklets K a person, segments S a tracklet, segment_length T frames; batches an epoch; epochs.
    hidden_share: share of tracklets taken from the hidden version of their clip, where there is one.
    mix_share: share of the segments in which a stretch of frames is replaced by another person's ("hidden behind somebody"); the
        stretch covers mix_stretch (least, most) of the segment.
    noise: standard deviation of Gaussian noise, relative to a frame feature's length; feature_dropout: share of the feature's
        numbers set to 0, the same for all frames of a segment.

    Losses: pair_weight, binary cross-entropy on segment pairs, both classes weighing the same; video_weight, cross-entropy of the
        video score against all other people's videos in the batch, at video_temperature (on the scale of the logit) and with the
        top share `ratio` as in a search; identity_weight, cross-entropy with label smoothing behind a BNNeck, and triplet_weight,
        batch-hard with margin triplet_margin, both on the segment's encoding under its own attention; attention_weight,
        -log of the attention that visible frames get, where hidden frames are known.
    across_cameras: pairs of one person under one camera take no part in pair and video losses, as in the field's evaluation.

    Steps: Adam at learning_rate after warm_up epochs of linear rise, falling to 0 along a cosine; attention_rate multiplies it
        for LSTM, query and key maps, classifier_rate for the score's row, backbone_rate for a backbone that is trained too.
        pull, weight decay towards the start point, is the share of the way that an epoch at the full rate goes back; clip, the
        largest norm of a gradient (0: no clipping).
    mixed_precision: half precision on CUDA devices.
    validation_segments: most segments of a video that validation looks at (evenly spaced).
    """

    people: int = 16
    tracklets: int = 4
    segments: int = 2
    segment_length: int = 8
    batches: int = 100
    epochs: int = 20
    hidden_share: float = 0.5
    mix_share: float = 0.3
    mix_stretch: tuple[float, float] = (0.25, 0.75)
    noise: float = 0.05
    feature_dropout: float = 0.0
    pair_weight: float = 1.0
    video_weight: float = 1.0
    video_temperature: float = 1.0
    ratio: float = 0.05
    identity_weight: float = 0.1
    label_smoothing: float = 0.1
    triplet_weight: float = 0.1
    triplet_margin: float = 0.3
    attention_weight: float = 0.1
    across_cameras: bool = True
    learning_rate: float = 3.5e-4
    attention_rate: float = 1.0
    classifier_rate: float = 1.0
    backbone_rate: float = 0.1
    warm_up: float = 1.0
    pull: float = 0.02
    clip: float = 5.0
    mixed_precision: bool = True
    validation_segments: int = 8
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("tracklets", "people"):
            if getattr(self, name) < 2:
                raise UsageError(f"{name} must be at least 2, not {getattr(self, name)}: a batch needs pairs to compare")
        for name in ("segments", "segment_length", "batches", "validation_segments"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name} must be at least 1, not {getattr(self, name)}")
        for name in ("hidden_share", "mix_share", "feature_dropout", "label_smoothing"):
            if not 0 <= getattr(self, name) <= 1:
                raise UsageError(f"{name} is a share from 0 to 1, not {getattr(self, name)}")
        low, high = self.mix_stretch
        if not 0 <= low <= high <= 1:
            raise UsageError(f"mix_stretch is two shares from 0 to 1, the smaller first, not {self.mix_stretch}")
        if not 0 < self.ratio <= 1:
            raise UsageError(f"ratio, the top share of scores, must be above 0 and at most 1, not {self.ratio}")
        for name in ("video_temperature", "learning_rate"):
            if not getattr(self, name) > 0:
                raise UsageError(f"{name} must be above 0, not {getattr(self, name)}")
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, int | float) and value < 0:
                raise UsageError(f"{field.name} cannot be negative, as {value} is")
