"""What of a model trains: all of it, all but what sees, or low-rank adapters beside its layers."""

from typing import Any

from configs.schema import FinetuneConfig
from tasks.training.model import Parts


def prepare(parts: Parts, finetune: FinetuneConfig) -> Any:
    """The model to train by `finetune.method`: `parts.model` itself, changed in place, or for
    `lora` a PeftModel around it, whose adapters are drawn from torch's global generator."""
    model, family = parts.model, parts.family
    if finetune.method == "frozen_vision":
        family.vision(model).requires_grad_(False)
    if finetune.method != "lora":
        return model
    from peft import LoraConfig, get_peft_model

    adapters = LoraConfig(
        r=finetune.lora.rank,
        lora_alpha=finetune.lora.alpha,  # type: ignore[arg-type]  # it is only divided
        lora_dropout=finetune.lora.dropout,
        target_modules=list(family.lora_targets),
    )
    # Where activations are checkpointed, transformers and peft each make frozen embeddings require
    # gradients. Both families add positions to these in place, which is an error then, and only
    # reentrant checkpointing, which we don't use, needs it.
    model.disable_input_require_grads()
    adapted = get_peft_model(model, adapters)
    model.disable_input_require_grads()
    return adapted


def merge(model: Any) -> Any:
    """The plain model that a prepared one has become; adapters are added to the weights, so `model`
    is not to be trained further."""
    from peft import PeftModel

    return model.merge_and_unload() if isinstance(model, PeftModel) else model


def count(model: Any) -> tuple[int, int]:
    """Parameters that train, and all there are; shared ones count once."""
    sizes = [(p.numel(), p.requires_grad) for p in model.parameters()]
    return sum(size for size, trains in sizes if trains), sum(size for size, _ in sizes)
