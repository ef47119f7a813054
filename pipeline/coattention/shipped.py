"""The co-attention heads that ship with the package, in the folder pipeline/weights."""

from pathlib import Path

from pipeline.backbone.runtime import same_backbone
from pipeline.coattention.head import read_description

FOLDER = Path(__file__).parents[1] / "weights" / "heads"


def shipped_head(identity: str) -> Path | None:
    """The folder of the head that ships for a backbone, None if there is none.

    identity: `BackboneSpec.identity`; its hash decides, so a copy of a backbone under another name gets its head too. Raises
    PipelineError for a damaged head.
    """
    for description in sorted(FOLDER.glob("*/model.json")):
        backbone = read_description(description.parent).backbone_hash
        if backbone and same_backbone(backbone, identity):
            return description.parent
    return None
