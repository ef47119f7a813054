"""The weights that ship with the package.

backbones/<name>.onnx with its sidecar <name>.json, and heads/<backbone>/ with a co-attention head and what belongs to it. A head
is found by the backbone that it names, never by its folder.
"""

from pathlib import Path

FOLDER = Path(__file__).parent


def shipped_backbones() -> list[str]:
    """Names of the backbones that ship."""
    return sorted(path.stem for path in (FOLDER / "backbones").glob("*.onnx"))


def shipped_backbone(name: str) -> Path | None:
    """The ONNX file of a backbone that ships; its sidecar lies beside it."""
    return FOLDER / "backbones" / f"{name}.onnx" if name in shipped_backbones() else None


def shipped_head(identity: str) -> Path | None:
    """The folder of the head that ships for a backbone, None if there is none.

    identity: `BackboneSpec.identity`; its hash decides, so a copy of a backbone under another name gets its head too. Raises
    PipelineError for a damaged head.
    """
    from pipeline.backbone import same_backbone
    from pipeline.head import read_description

    for description in sorted((FOLDER / "heads").glob("*/model.json")):
        backbone = read_description(description.parent).backbone_hash
        if backbone and same_backbone(backbone, identity):
            return description.parent
    return None
