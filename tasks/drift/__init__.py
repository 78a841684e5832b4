"""Drift: production's requests (`window.py`) against what the champion learned from
(`reference.py`), tested by one of two detectors (`detectors.py`), told in `report.py`."""
