"""From a recording to what an audio backbone takes, by the backbone's own feature extractor."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from dna_probe.errors import DataError

SECONDS = 4.0


@dataclass(frozen=True, eq=False)
class AudioPreprocessing:
    """The middle of a recording through a feature extractor: a waveform, or a log-mel spectrogram.

    Attributes:
        extractor: a feature extractor of the Hugging Face library ``transformers``; it says the sampling rate.
        seconds: how much of each recording is read, from its middle. A shorter one is repeated until it is as long, for
            silence behind it would tell its length.
    """

    extractor: Any
    seconds: float = SECONDS
    modality: ClassVar[str] = "audio"

    def __post_init__(self):
        if not 0.1 <= self.seconds <= 60:
            raise DataError(f"seconds = {self.seconds} cannot be read", "", "Give 0.1 to 60")

    @property
    def rate(self) -> int:
        """Samples in a second."""
        return int(self.extractor.sampling_rate)

    def load(self, source: Any, name: str = "the recording") -> np.ndarray:
        """What the model takes of one recording: float32 (samples,) or (frames, mel bands). Raises
        ``UnreadableSample``."""
        from dna_probe.audio.reading import read_audio

        return self._extract(_middle(read_audio(source, self.rate, name), self._length))

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


def _middle(waveform: np.ndarray, length: int) -> np.ndarray:
    if len(waveform) < length:
        return np.resize(waveform, length)
    start = (len(waveform) - length) // 2
    return waveform[start : start + length]
