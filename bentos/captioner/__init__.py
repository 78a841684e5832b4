"""The captioner: images to pixels, the engine, the HTTP service, and what it captures and follows.
This is all that a serving machine runs: no Prefect, no alibi-detect, MLflow only to follow."""
