"""The MLflow registry: `runs.py` for experiments, runs and what they carry, `versions.py` for
registered versions, the aliases `champion`, `challenger`, `previous`, and their files."""
