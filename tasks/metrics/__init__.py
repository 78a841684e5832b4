"""Caption scores, the evaluations that hold them and the gate that judges by them.

The folders `bleu`, `rouge_l` and `cider` are what `evaluate.load` takes."""
