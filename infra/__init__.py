"""What the loop runs on: `stack.py` starts the local servers, `demo.py` tells the whole story on
them, `up.py` keeps them up, `reaper.py` ends them whatever happens."""
