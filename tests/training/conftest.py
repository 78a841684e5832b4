"""A prepared dataset of a few noise images, and a base model in the published BLIP's layout."""

import json
from pathlib import Path

import numpy as np
import pytest

SIZE = 24
CAPTIONS = (
    "A large red circle.",
    "two small blue squares on a gray background",
    "there is a green star above a purple diamond",
)


def write_split(folder: Path, name: str, count: int, source: str = "scenes") -> dict[str, int]:
    rng = np.random.default_rng(count)
    np.save(
        folder / f"{name}-00000.npy", rng.integers(0, 256, (count, SIZE, SIZE, 3), dtype=np.uint8)
    )
    rows = [
        {"image_id": f"{name}-{i}", "references": CAPTIONS[: 1 + i % 3], "source": source}
        for i in range(count)
    ]
    (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {"images": count, "captions": sum(len(CAPTIONS[: 1 + i % 3]) for i in range(count))}


@pytest.fixture(scope="session")
def dataset(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("prepared")
    splits = {name: write_split(folder, name, n) for name, n in (("train", 12), ("val", 4))}
    splits["test"] = write_split(folder, "test", 2)
    card = {"image_size": SIZE, "digest": "0", "splits": splits}
    (folder / "dataset.json").write_text(json.dumps(card))
    return folder


@pytest.fixture(scope="session")
def salesforce_base(tmp_path_factory) -> Path:
    """BERT's vocabulary with [DEC] and [ENC] behind it, an eos that is not the sep, safetensors."""
    import torch
    from transformers import BlipConfig, BlipForConditionalGeneration

    folder = tmp_path_factory.mktemp("salesforce") / "base"
    words = sorted({word for caption in CAPTIONS for word in caption.lower().split()})
    letters = [chr(ord("a") + i) for i in range(26)]
    vocab = ["[PAD]", "[unused0]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "."]
    vocab += letters + [f"##{letter}" for letter in letters]
    vocab += [word for word in words if word not in vocab] + ["[DEC]", "[ENC]"]
    text = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    text |= {"intermediate_size": 32, "max_position_embeddings": 40, "vocab_size": len(vocab)}
    text |= {"bos_token_id": len(vocab) - 2, "eos_token_id": 2, "pad_token_id": 0}
    text |= {"sep_token_id": vocab.index("[SEP]")}
    vision = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    vision |= {"intermediate_size": 32, "image_size": SIZE, "patch_size": 8}
    torch.manual_seed(0)
    config = BlipConfig(text_config=text, vision_config=vision | {"initializer_range": 0.02})
    BlipForConditionalGeneration(config).save_pretrained(folder)
    (folder / "vocab.txt").write_text("".join(f"{token}\n" for token in vocab))
    special = {"cls_token": "[CLS]", "mask_token": "[MASK]", "pad_token": "[PAD]"}
    special |= {"sep_token": "[SEP]", "unk_token": "[UNK]"}
    write_json(folder / "special_tokens_map.json", special)
    write_json(
        folder / "tokenizer_config.json",
        special
        | {"do_lower_case": True, "model_max_length": 512, "tokenizer_class": "BertTokenizer"}
        | {"bos_token": "[DEC]", "processor_class": "BlipProcessor"},
    )
    write_json(
        folder / "preprocessor_config.json",
        {
            "do_normalize": True,
            "do_pad": True,
            "do_rescale": True,
            "do_resize": True,
            "image_mean": [0.48145466, 0.4578275, 0.40821073],
            "image_processor_type": "BlipImageProcessor",
            "image_std": [0.26862954, 0.26130258, 0.27577711],
            "processor_class": "BlipProcessor",
            "resample": 3,
            "rescale_factor": 0.00392156862745098,
            "size": {"height": SIZE, "width": SIZE},
            "size_divisor": 32,
        },
    )
    return folder


def write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=2))
