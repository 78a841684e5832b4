"""Grafana's dashboards: `python -m infra.grafana` writes them from what stands here."""
