"""Training: tokenizer, model, collation, the Trainer entry that runs in its own process,
and the launcher that starts, follows and ends it."""
