"""The families there are. Another one is a file beside this and a name in the tuple below."""

from typing import Any

from bentos.captioner.families import blip_onnx
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
