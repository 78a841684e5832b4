"""Scenarios: `schema.py` types them, `loader.py` reads one YAML with `key.sub=value` overrides,
`settings.py` says where this machine keeps its state and finds its servers."""
