"""The dataset report: what was read, what was set aside and why, what is left, how it moved.
`facts` is what there is to tell; `page` tells it as HTML and JSON, `markdown` to Prefect's UI."""
