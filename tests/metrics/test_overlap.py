"""BLEU, ROUGE-L and CIDEr equal the reference implementation's on the same tokens."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocoevalcap.bleu.bleu import Bleu
from pycocoevalcap.cider.cider import Cider
from pycocoevalcap.rouge.rouge import Rouge

from tasks.metrics import overlap

caption = st.lists(st.sampled_from(["a", "b", "c", "d", "e", "dog", "!", "-lrb-"]), max_size=9)
images = st.lists(
    st.tuples(caption, st.lists(caption, min_size=1, max_size=5)), min_size=1, max_size=7
)


def corpus_of(pairs) -> overlap.Corpus:
    return overlap.Corpus([pair[0] for pair in pairs], [pair[1] for pair in pairs])


def theirs(scorer, pairs, **options):
    predictions = {i: [" ".join(tokens)] for i, (tokens, _) in enumerate(pairs)}
    references = {i: [" ".join(ref) for ref in refs] for i, (_, refs) in enumerate(pairs)}
    return scorer.compute_score(references, predictions, **options)


@given(images)
@settings(max_examples=200, deadline=None)
def test_bleu_equals_the_reference_implementation(pairs):
    corpus, per_image = theirs(Bleu(4), pairs, verbose=0)
    ours = overlap.bleu(corpus_of(pairs))
    np.testing.assert_allclose(ours.corpus, corpus, rtol=0, atol=1e-9)
    np.testing.assert_allclose(ours.per_image, per_image, rtol=0, atol=1e-9)


@given(images)
@settings(max_examples=200, deadline=None)
def test_rouge_l_equals_the_reference_implementation(pairs):
    corpus, per_image = theirs(Rouge(), pairs)
    ours = overlap.rouge_l(corpus_of(pairs))
    np.testing.assert_allclose(ours, per_image, rtol=0, atol=1e-9)
    assert ours.mean() == pytest.approx(corpus, abs=1e-9)


@given(images)
@settings(max_examples=200, deadline=None)
def test_cider_equals_the_reference_implementation(pairs):
    # Theirs fails where no reference has a word; there nothing can be shared.
    if any(ref for _, refs in pairs for ref in refs):
        corpus, per_image = theirs(Cider(), pairs)
    else:
        corpus, per_image = 0.0, np.zeros(len(pairs))
    ours = overlap.cider(corpus_of(pairs))
    np.testing.assert_allclose(ours, per_image, rtol=0, atol=1e-9)
    assert ours.mean() == pytest.approx(corpus, abs=1e-9)


@given(images)
def test_one_count_serves_both_n_gram_metrics(pairs):
    corpus = corpus_of(pairs)
    bleu, cider = overlap.bleu_and_cider(corpus)
    assert bleu.corpus == overlap.bleu(corpus).corpus
    np.testing.assert_array_equal(cider, overlap.cider(corpus))


@pytest.mark.parametrize(("predictions", "references"), [([], []), ([["a"]], []), ([["a"]], [[]])])
def test_what_does_not_pair_up_is_refused(predictions, references):
    with pytest.raises(overlap.NothingToScore):
        overlap.Corpus(predictions, references)
