"""Well-known models of transformers and open_clip, for the list of what can be opened; every other name opens alike.

Licences are those that the makers state for the weights; parameters are counted in the tower that is probed.
"""

from __future__ import annotations

from dna_probe.backbones.timm import Entry

_SQUARE = (224, 224)


def _hf(name: str, family: str, millions: float | None, licence: str, modality: str = "image") -> Entry:
    parameters = None if millions is None else round(millions * 1e6)
    return Entry(
        name=f"hf:{name}",
        family=family,
        parameters=parameters,
        input_size=_SQUARE if modality == "image" else None,
        licence=licence,
        modality=modality,
    )


def _open_clip(name: str, millions: float, licence: str = "mit") -> Entry:
    return Entry(f"open_clip:{name}", "open_clip", round(millions * 1e6), _SQUARE, licence, "mit", needs="open-clip")


ENTRIES = (
    _hf("google/vit-base-patch16-224-in21k", "vit", 86.4, "apache-2.0"),
    _hf("facebook/deit-base-distilled-patch16-224", "deit", 87.3, "apache-2.0"),
    _hf("openai/clip-vit-base-patch32", "clip", 87.5, "not stated"),
    _hf("openai/clip-vit-large-patch14", "clip", 303.2, "not stated"),
    _hf("google/siglip-base-patch16-224", "siglip", 92.9, "apache-2.0"),
    _hf("google/siglip2-base-patch16-224", "siglip", 92.9, "apache-2.0"),
    _hf("facebook/dinov2-small", "dinov2", 22.1, "apache-2.0"),
    _hf("facebook/dinov2-with-registers-small", "dinov2_with_registers", 22.1, "apache-2.0"),
    _hf("facebook/dinov3-vits16-pretrain-lvd1689m", "dinov3_vit", 21.6, "dinov3-license"),
    _hf("microsoft/beit-base-patch16-224-pt22k", "beit", None, "apache-2.0"),
    _hf("google-bert/bert-base-uncased", "bert", 109.5, "apache-2.0", "text"),
    _hf("FacebookAI/roberta-base", "roberta", 124.6, "mit", "text"),
    _hf("distilbert/distilbert-base-uncased", "distilbert", 66.4, "apache-2.0", "text"),
    _hf("openai-community/gpt2", "gpt2", 124.4, "mit", "text"),
    _hf("MIT/ast-finetuned-audioset-10-10-0.4593", "audio-spectrogram-transformer", 86.2, "bsd-3-clause", "audio"),
    _hf("facebook/wav2vec2-base", "wav2vec2", 94.4, "apache-2.0", "audio"),
    _hf("facebook/hubert-base-ls960", "hubert", 94.4, "apache-2.0", "audio"),
    _open_clip("ViT-B-32/laion2b_s34b_b79k", 87.8),
    _open_clip("ViT-L-14/datacomp_xl_s13b_b90k", 304.0),
)
