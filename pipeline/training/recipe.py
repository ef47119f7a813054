"""The settings of a training from text, as a command line or a notebook's reader writes them."""

from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

from pipeline.errors import UsageError
from pipeline.training.initial_head import StartSettings
from pipeline.training.settings import TrainingSettings

TERMS = {
    "pair": "pair_weight",
    "video": "video_weight",
    "identity": "identity_weight",
    "triplet": "triplet_weight",
    "attention": "attention_weight",
    "mixing": "mix_share",
    "noise": "noise",
    "pull": "pull",
    "clipping": "clip",
}
"""What can be switched off by name, and the setting that is then 0."""


def read_recipe(
    flags: Mapping[str, Any], without: Sequence[str] = (), changes: Sequence[str] = ()
) -> tuple[TrainingSettings, StartSettings]:
    """The settings of a training and of its start point.

    flags: values by name, of which those count that are fields of either. without: keys of TERMS, whose settings become 0.
    changes: "NAME=VALUE" of any field of either, which come last. Raises UsageError for a term, a name or a value that cannot be
    meant.

    >>> settings, start = read_recipe({"epochs": 3, "key_width": 8}, ["noise"], ["warm_up=0.5", "centre=false"])
    >>> settings.epochs, settings.noise, settings.warm_up, start.key_width, start.centre
    (3, 0, 0.5, 8, False)
    """
    kinds = {field.name: str(field.type) for settings in (TrainingSettings, StartSettings) for field in fields(settings)}
    chosen = {name: value for name, value in flags.items() if name in kinds}
    for term in without:
        if term not in TERMS:
            raise UsageError(f"there is no term {term!r} to switch off; there are {', '.join(TERMS)}")
        chosen[TERMS[term]] = 0
    for change in changes:
        name, equals, text = change.partition("=")
        if not equals or name not in kinds:
            raise UsageError(f"--set {change!r} names no setting; write NAME=VALUE with one of {', '.join(kinds)}")
        try:
            chosen[name] = _value(text, kinds[name])
        except ValueError as error:
            raise UsageError(f"--set {change!r}: {text!r} is no value for {name}") from error
    own = {field.name for field in fields(StartSettings)}
    start = {name: chosen.pop(name) for name in own & chosen.keys()}
    return TrainingSettings(**chosen), StartSettings(**start)


def _value(text: str, kind: str) -> Any:
    if "bool" in kind:
        if text.lower() not in ("true", "false"):
            raise ValueError(text)
        return text.lower() == "true"
    if "tuple" in kind:
        return tuple(float(part) for part in text.split(","))
    if "int" in kind:
        return int(text)
    return None if "None" in kind and text == "none" else float(text)
