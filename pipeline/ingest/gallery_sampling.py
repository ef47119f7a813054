"""How whatever joins or meets a gallery's videos is sampled: as they were."""

from typing import Any

from pipeline.decoding.sampling import Sampling
from pipeline.gallery.gallery import Gallery


def gallery_sampling(gallery: Gallery, **others: Any) -> Sampling:
    """At the gallery's rates, in frames of its backbone's size. others: fields of `Sampling`. Raises UsageError as that does."""
    settings, spec = gallery.settings, gallery.settings.backbone
    as_is = {"rate": settings.rate, "image_rate": settings.image_rate, "height": spec.height, "width": spec.width}
    return Sampling(**as_is | others)
