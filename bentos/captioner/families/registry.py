"""The families there are. Another one is a file beside this and a name in the tuple below."""

from pathlib import Path
from typing import Any

from bentos.captioner.families import blip_onnx, blip_weights
from bentos.captioner.families.blip import Blip
from bentos.captioner.families.family import Family
from bentos.captioner.families.git import Git

_ALL: tuple[Family, ...] = (Blip(), Git())
_FAMILIES = {family.model_type: family for family in _ALL}


class UnknownFamily(ValueError):
    """A model of a type that no family knows."""


def family_of(model_type: object) -> Family:
    """The family of a config.json's `model_type`. Raises UnknownFamily."""
    family = _FAMILIES.get(str(model_type))
    if family is None:
        known = ", ".join(map(repr, sorted(_FAMILIES)))
        raise UnknownFamily(f"a model of type {model_type!r} is of no known family: {known}.")
    return family


def on_cpu(family: Family, model: Any) -> Family:
    """The family at its fastest for this model on a CPU; its weights must not change then."""
    if isinstance(family, Blip) and blip_onnx.can_run(model):
        return blip_onnx.OnnxBlip(model)
    return family


def load_on(device: str, family: Family, folder: Path) -> tuple[Family, Any, list[str]]:
    """The folder's model on a device, the family at its fastest for it there, and the weights that
    the folder lacked. Raises what `Family.load` raises."""
    if device == "cpu" and isinstance(family, Blip):
        bare = blip_weights.read(folder)
        if bare is not None and blip_onnx.can_run(bare):
            return on_cpu(family, bare), bare, []
    model, missing = family.load(folder, local_files_only=True)
    model = model.to(device).eval()
    return on_cpu(family, model) if device == "cpu" else family, model, missing
