"""The alternative that `bench_serving` measures against, as tutorials have it: FastAPI, one picture
a request, BlipProcessor and `model.generate`.

    MODEL=FOLDER uvicorn tests.benchmarks.tutorial_server:app
"""

import io
import os

import torch
from fastapi import FastAPI, UploadFile
from PIL import Image
from transformers import AutoTokenizer, BlipForConditionalGeneration
from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil
from transformers.models.blip.processing_blip import BlipProcessor

FOLDER = os.environ["MODEL"]
LONGEST = int(os.environ["MAX_NEW_TOKENS"])

app = FastAPI()
processor = BlipProcessor(
    BlipImageProcessorPil.from_pretrained(FOLDER), AutoTokenizer.from_pretrained(FOLDER)
)
model = BlipForConditionalGeneration.from_pretrained(FOLDER).eval()


def caption(data: bytes) -> dict[str, object]:
    picture = Image.open(io.BytesIO(data)).convert("RGB")
    inputs = processor(images=picture, return_tensors="pt")
    with torch.no_grad():
        tokens = model.generate(**inputs, max_new_tokens=LONGEST)
    text = processor.decode(tokens[0], skip_special_tokens=True)
    return {"caption": text, "model": {"version": "tutorial"}}


@app.post("/v1/caption")
async def in_the_loop(image: UploadFile) -> dict[str, object]:
    return caption(await image.read())


@app.post("/threads/v1/caption")
def in_threads(image: UploadFile) -> dict[str, object]:
    return caption(image.file.read())
