import numpy as np
import pytest
from transformers import PreTrainedTokenizerFast

from dna_probe.errors import DataError, UnreadableSample
from dna_probe.texts.preprocessing import TextPreprocessing

from ..tiny_language import bare_tokeniser, tokeniser


def test_a_text_becomes_its_tokens_with_those_that_the_tokeniser_adds():
    reader = TextPreprocessing(tokeniser())
    tokens = reader.load("the quick brown fox")
    assert tokens.dtype == np.int64 and tokens.ndim == 1
    assert tokeniser().convert_ids_to_tokens(tokens.tolist())[0] == "[CLS]"
    assert reader.class_token and reader.special_tokens == 2


def test_a_tokeniser_without_a_class_token_has_none():
    reader = TextPreprocessing(bare_tokeniser())
    assert not reader.class_token and reader.special_tokens == 0


def test_long_texts_are_cut_and_short_ones_are_not_padded():
    reader = TextPreprocessing(tokeniser(), max_length=10)
    assert len(reader.load("fox " * 100)) == 10 and len(reader.load("fox")) == 3


def test_what_a_tokeniser_leaves_nothing_of_is_unreadable():
    from tokenizers import Regex, normalizers

    picky = PreTrainedTokenizerFast(tokenizer_object=tokeniser().backend_tokenizer, model_max_length=64)
    picky.backend_tokenizer.normalizer = normalizers.Replace(Regex("[^a-z ]"), "")
    with pytest.raises(UnreadableSample, match="no token is left of it"):
        TextPreprocessing(picky).load("1234")
    assert len(TextPreprocessing(picky).load("1234 fox")) == 3


@pytest.mark.parametrize("count", [1, 2, 5])
def test_trial_texts_have_one_length_and_differ(count):
    rows = TextPreprocessing(tokeniser()).trial(count)
    assert rows.shape[0] == count and len({tuple(row) for row in rows}) == count


def test_another_tokeniser_is_told_from_this_one():
    one, same, other = (TextPreprocessing(make()).to_json() for make in (tokeniser, tokeniser, bare_tokeniser))
    assert one == same != other and one["modality"] == "text"
    assert TextPreprocessing(tokeniser(), max_length=20).to_json() != one


def test_using_a_tokeniser_makes_no_other_of_it():
    used = PreTrainedTokenizerFast(tokenizer_object=bare_tokeniser().backend_tokenizer, pad_token="[UNK]")
    before = TextPreprocessing(used).to_json()
    used(["fox", "the fox"], truncation=True, max_length=9, padding=True)
    assert TextPreprocessing(used).to_json() == before


def test_a_length_that_leaves_no_text_is_refused():
    with pytest.raises(DataError, match="max_length = 3"):
        TextPreprocessing(tokeniser(), max_length=3)
