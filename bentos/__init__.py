"""What is packaged into a Bento: `captioner/` is shipped and imports nothing else of the project;
`packaging.py` builds it, serves it for a check and stays behind."""
