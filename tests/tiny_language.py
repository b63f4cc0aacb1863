"""A language of few words, its tokenisers, texts of two writers, and small models of texts and sounds."""

from functools import lru_cache

import numpy as np

TEXT = "the quick brown fox jumps over lazy dog while seven grey geese cross river at dawn and a calm moon rises"
WORDS = TEXT.split()
PLAIN = WORDS[:12]
SPECIAL = ["[UNK]", "[CLS]", "[SEP]"]


def _vocabulary():
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = {word: number for number, word in enumerate([*SPECIAL, *WORDS])}
    made = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    return made


@lru_cache
def tokeniser():
    """With class and end tokens, as BERT has."""
    from tokenizers import processors
    from transformers import PreTrainedTokenizerFast

    made = _vocabulary()
    made.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=made, cls_token="[CLS]", sep_token="[SEP]", unk_token="[UNK]", model_max_length=64
    )


@lru_cache
def bare_tokeniser():
    """Without, as GPT-2 has."""
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(tokenizer_object=_vocabulary(), unk_token="[UNK]", model_max_length=64)


def texts(count: int, seed: int = 0) -> tuple[list[str], list[int]]:
    """Texts of two writers in turn: the second, labelled 1, uses other words than the first more often."""
    rng = np.random.default_rng(seed)
    found = []
    for number in range(2 * count):
        words = WORDS if number % 2 else PLAIN
        found.append(" ".join(rng.choice(words, rng.integers(8, 16))))
    return found, [number % 2 for number in range(2 * count)]


def sounds(count: int, rate: int = 16_000, seed: int = 0) -> tuple[list[np.ndarray], list[int]]:
    """A second of a tone in noise, in turn without and, labelled 1, with a hum above it."""
    rng = np.random.default_rng(seed)
    time = np.arange(rate) / rate
    found = []
    for number in range(2 * count):
        wave = np.sin(2 * np.pi * rng.uniform(200, 400) * time) + 0.3 * rng.standard_normal(rate)
        if number % 2:
            wave += 0.7 * np.sin(2 * np.pi * 3000 * time)
        found.append((0.2 * wave).astype(np.float32))
    return found, [number % 2 for number in range(2 * count)]


def bert():
    from transformers import BertConfig, BertModel

    return _model(
        BertModel,
        BertConfig(
            vocab_size=len(SPECIAL) + len(WORDS),
            hidden_size=32,
            num_hidden_layers=3,
            num_attention_heads=4,
            intermediate_size=64,
            max_position_embeddings=64,
        ),
    )


def gpt():
    from transformers import GPT2Config, GPT2Model

    return _model(
        GPT2Model,
        GPT2Config(
            vocab_size=len(SPECIAL) + len(WORDS),
            n_embd=32,
            n_layer=3,
            n_head=4,
            n_positions=64,
            bos_token_id=1,
            eos_token_id=2,
        ),
    )


def ast():
    from transformers import ASTConfig, ASTModel

    small = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 64}
    return _model(ASTModel, ASTConfig(**small, max_length=96, num_mel_bins=32))


def ast_extractor():
    from transformers import ASTFeatureExtractor

    return ASTFeatureExtractor(max_length=96, num_mel_bins=32)


def wav2vec2():
    from transformers import Wav2Vec2Config, Wav2Vec2Model

    return _model(Wav2Vec2Model, Wav2Vec2Config(**_waveform_settings()))


def hubert():
    from transformers import HubertConfig, HubertModel

    return _model(HubertModel, HubertConfig(**_waveform_settings()))


def waveform_extractor():
    from transformers import Wav2Vec2FeatureExtractor

    return Wav2Vec2FeatureExtractor()


def _waveform_settings():
    return {
        "hidden_size": 32,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "intermediate_size": 64,
        "conv_dim": (16, 16),
        "conv_stride": (16, 20),
        "conv_kernel": (16, 20),
        "num_feat_extract_layers": 2,
        "num_conv_pos_embeddings": 8,
        "num_conv_pos_embedding_groups": 2,
    }


def _model(build, config):
    import torch

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return build(config).eval()
