"""Texts and recordings, from samples in memory to verdicts, by the functions that images go through.

    python examples/text_and_audio.py

Both backbones are small and untrained, and both sets are made up, so that it runs anywhere in seconds. With models and
data of your own the calls are the same: dna_probe.fit("hf:google-bert/bert-base-uncased", "texts/", shots=20).
"""

import numpy as np
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import ASTConfig, ASTFeatureExtractor, ASTModel, BertConfig, BertModel, PreTrainedTokenizerFast

import dna_probe
from dna_probe.audio.preprocessing import AudioPreprocessing
from dna_probe.texts.preprocessing import TextPreprocessing

RATE = 16_000
RIVER = "the grey river runs past a mill and an old stone bridge where boats wait for the morning tide"
BROCHURE = "truly stunning vibrant nestled oasis boasting seamless unparalleled charm"
CALM, LOUD = RIVER.split(), BROCHURE.split()
SPECIAL = {"[UNK]": 0, "[CLS]": 1, "[SEP]": 2}


def tokeniser() -> PreTrainedTokenizerFast:
    words = SPECIAL | {word: number for number, word in enumerate(dict.fromkeys(CALM + LOUD), len(SPECIAL))}
    made = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    ends = [("[CLS]", SPECIAL["[CLS]"]), ("[SEP]", SPECIAL["[SEP]"])]
    made.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=ends)
    return PreTrainedTokenizerFast(tokenizer_object=made, cls_token="[CLS]", unk_token="[UNK]", model_max_length=64)


def texts(count: int, rng: np.random.Generator) -> tuple[list[str], list[int]]:
    """Human texts, labelled 0, and machine texts that like big words, labelled 1, in turn."""
    vocabularies = CALM, CALM + LOUD
    found = [" ".join(rng.choice(vocabularies[number % 2], rng.integers(10, 20))) for number in range(2 * count)]
    return found, [number % 2 for number in range(2 * count)]


def recordings(count: int, rng: np.random.Generator) -> tuple[list[np.ndarray], list[int]]:
    """A second of voice-like tones, labelled 0, and, labelled 1, the same with a whistle as vocoders leave, in turn."""
    time = np.arange(RATE) / RATE
    found = []
    for number in range(2 * count):
        pitch = rng.uniform(90, 220)
        wave = sum(np.sin(2 * np.pi * pitch * k * time) / k for k in range(1, 12)) + 0.2 * rng.standard_normal(RATE)
        found.append((wave + (number % 2) * 0.3 * np.sin(2 * np.pi * 5000 * time)).astype(np.float32))
    return found, [number % 2 for number in range(2 * count)]


small = {"hidden_size": 48, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 96}
torch.manual_seed(0)
backbones = {
    "texts": dna_probe.open_backbone(
        BertModel(BertConfig(vocab_size=len(SPECIAL) + len(set(CALM + LOUD)), max_position_embeddings=64, **small)),
        preprocessing=TextPreprocessing(tokeniser()),
    ),
    "recordings": dna_probe.open_backbone(
        ASTModel(ASTConfig(max_length=96, num_mel_bins=64, **small)),
        preprocessing=AudioPreprocessing(ASTFeatureExtractor(max_length=96, num_mel_bins=64), seconds=1.0),
    ),
}
rng = np.random.default_rng(0)
for name, backbone in backbones.items():
    make = texts if name == "texts" else recordings
    print(dna_probe.locate_layers(backbone, make(16, rng), resamples=50))
    detector = dna_probe.fit(backbone, make(16, rng))
    samples, labels = make(40, rng)
    right = (detector.predict(samples) == np.array(labels)).mean()
    print(f"{len(detector.units)} units tell {right:.0%} of {len(samples)} new {name} rightly")
    for prediction in detector.judge(samples[:2]):
        print(f"  {prediction.path}: {prediction.probability:.2f} {prediction.verdict}")
