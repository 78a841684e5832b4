"""Composition only: which stage follows which. Each flow reads on one screen and runs by
`python -m flows.<name> CONFIG [key=value …]` or as a deployment of `prefect.yaml`."""
