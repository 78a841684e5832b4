"""The MLflow registry: `runs.py` for experiments, runs and what they carry, `versions.py` for
registered versions, their aliases and files, `history.py` for who was champion when and why,
`lineage.py` for what explains a version, `card.py` for its model card."""
