"""The data room: readers, the raw folder, checks, splits, prepared arrays, feedback, DVC versions,
and the demo world. Plain functions from a config section to a content-addressed folder."""
