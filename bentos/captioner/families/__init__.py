"""The model room's one seam: what each family of image-to-text models does its own way, a file a
family, and `registry.py` that finds the family of a model."""
