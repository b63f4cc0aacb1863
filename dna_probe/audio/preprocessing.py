"""From a recording to what an audio backbone takes, by the backbone's own feature extractor."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from dna_probe.errors import DataError

# Read of each recording where the extractor does not say how much a model was made for.
SECONDS = 4.0
MAX_SECONDS = 60
# Of the spectrograms whose length an extractor states in frames.
_FRAMES_PER_SECOND = 100


@dataclass(frozen=True, eq=False)
class AudioPreprocessing:
    """The middle of a recording through a feature extractor: a waveform, or a log-mel spectrogram.

    Attributes:
        extractor: a feature extractor of the Hugging Face library ``transformers``; it says the sampling rate.
        seconds: how much of each recording is read, from its middle. A shorter one is repeated until it is as long, for
            silence behind it would tell its length. None reads what the extractor fills up to: 30 s for Whisper, 10.24
            s for most AST; 4 s for extractors that fill up to nothing.
    """

    extractor: Any
    seconds: float = None  # type: ignore[assignment]
    modality: ClassVar[str] = "audio"

    def __post_init__(self):
        if self.seconds is None:
            object.__setattr__(self, "seconds", _wanted(self.extractor))
        if not 0.1 <= self.seconds <= MAX_SECONDS:
            raise DataError(f"seconds = {self.seconds} cannot be read", "", f"Give 0.1 to {MAX_SECONDS}")

    @property
    def rate(self) -> int:
        """Samples in a second."""
        return int(self.extractor.sampling_rate)

    def load(self, source: Any, name: str = "the recording") -> np.ndarray:
        """What the model takes of one recording: float32 (samples,), or a spectrogram with its axes as the extractor
        puts them. Raises ``UnreadableSample``."""
        from dna_probe.audio.reading import read_audio

        return self._extract(np.resize(read_audio(source, self.rate, name, self.seconds), self._length))

    def trial(self, count: int) -> np.ndarray:
        """Faint noise."""
        noise = np.random.default_rng(0).standard_normal((count, self._length)).astype(np.float32)
        return np.stack([self._extract(0.1 * row) for row in noise])

    @property
    def _length(self) -> int:
        return round(self.seconds * self.rate)

    def _extract(self, waveform: np.ndarray) -> np.ndarray:
        made = self.extractor(waveform, sampling_rate=self.rate, return_tensors="np")
        return np.asarray(made[self.extractor.model_input_names[0]][0], dtype=np.float32)

    def to_json(self) -> dict[str, Any]:
        settings = self.extractor.to_dict()
        # Not settings but matrices that follow from them.
        plain = {name: value for name, value in settings.items() if isinstance(value, str | int | float | bool | None)}
        return {"modality": self.modality, "seconds": self.seconds, "extractor": dict(sorted(plain.items()))}


def _wanted(extractor: Any) -> float:
    """The seconds that an extractor fills up to; what a shorter recording leaves would be read as padding."""
    if chunk := getattr(extractor, "chunk_length", None):  # of Whisper
        return float(min(chunk, MAX_SECONDS))
    frames = getattr(extractor, "max_length", None) if hasattr(extractor, "num_mel_bins") else None  # of AST
    return frames / _FRAMES_PER_SECOND if frames else SECONDS
