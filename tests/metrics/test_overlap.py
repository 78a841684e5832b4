"""BLEU, ROUGE-L, CIDEr and CIDEr-D equal the reference implementation's on the same tokens."""

import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocoevalcap.bleu.bleu import Bleu
from pycocoevalcap.cider.cider import Cider
from pycocoevalcap.rouge.rouge import Rouge

from tasks.metrics import overlap

WORDS = ["a", "b", "c", "d", "e", "dog", "!", "-lrb-", "1\u00a01/2"]  # the last is two of BLEU's
caption = st.lists(st.sampled_from(WORDS), max_size=9)
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


def n_grams(words, order):
    return Counter(tuple(words[i : i + order]) for i in range(len(words) - order + 1))


def cider_d_by_the_paper(pairs):
    """CIDEr-D of Vedantam et al. 2015, section 4: formula by formula, an image after the other."""
    pairs = [(" ".join(p).split(), [" ".join(ref).split() for ref in refs]) for p, refs in pairs]
    scores = np.zeros(len(pairs))
    for order in range(1, 5):
        held = Counter(g for _, refs in pairs for g in {g for r in refs for g in n_grams(r, order)})

        def vector(words, order=order, held=held):
            idf = {g: math.log(len(pairs) / max(1, held[g])) for g in n_grams(words, order)}
            return {g: count * idf[g] for g, count in n_grams(words, order).items()}

        for i, (prediction, references) in enumerate(pairs):
            said = vector(prediction)
            for reference in references:
                meant = vector(reference)
                dot = sum(
                    min(weight, meant.get(g, 0)) * meant.get(g, 0) for g, weight in said.items()
                )
                norm = math.hypot(*said.values()) * math.hypot(*meant.values())
                apart = len(prediction) - len(reference)
                likeness = dot / norm * math.exp(-(apart**2) / (2 * 6**2)) if norm else 0
                scores[i] += 10 / len(references) * likeness / 4
    return scores


@given(images)
@settings(max_examples=200, deadline=None)
def test_cider_d_equals_the_papers_formula(pairs):
    ours = overlap.cider_d(corpus_of(pairs))
    np.testing.assert_allclose(ours, cider_d_by_the_paper(pairs), rtol=0, atol=1e-9)


@given(images)
def test_what_is_called_cider_is_cider_d(pairs):
    corpus = corpus_of(pairs)
    np.testing.assert_array_equal(overlap.cider(corpus), overlap.cider_d(corpus))


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
