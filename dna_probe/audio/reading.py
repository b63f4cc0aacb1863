"""One recording in, one normalised waveform or a plain reason out."""

from __future__ import annotations

import io
import math
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from dna_probe.content import open_content
from dna_probe.errors import DataError, UnreadableSample
from dna_probe.images.sources import StoredImage, is_stored

if TYPE_CHECKING:
    import soundfile
    import torch

    Samples = np.ndarray | torch.Tensor
    AudioSource = Path | str | bytes | StoredImage | Samples | tuple[Samples, int]
else:
    AudioSource = Any

MAX_SECONDS = 3600
MAX_CHANNELS = 32
# -80 dB of full scale, three steps of 16 bits: what swings no further is silent.
SILENCE = 1e-4
_BLOCK = 1 << 16
# So many samples stand for an unknown number.
_UNKNOWN = 1 << 60
# A decoder may foretell the length of a compressed file a little wrong.
_FORETOLD = 0.95
# libsndfile's note on a data chunk that claims more bytes than the file has; larger claims are those of a stream.
_SHORT = re.compile(r"\bdata : (\d+) \(should be (\d+)\)")
_STREAMED = 0x7FFF0000
# Its notes on half a page at the end; that the last page is not marked as such is common in recorded streams.
_CUT = re.compile(r"Ogg ?: (?:Junk after the last page|File ended unexpectedly)")


def read_audio(source: AudioSource, rate: int, name: str | None = None) -> np.ndarray:
    """The waveform of a recording, float32 (samples,) at `rate` Hz, one channel, its largest magnitude 1.

    `source` is a path, the bytes of a sound file, a stored source, the pair (samples, their rate), or samples that have
    the rate already: an array or tensor (samples,) or with channels along its shorter side, of floats, or of integers
    of up to 32 bits over their whole range. Files are what libsndfile reads: WAV, FLAC, MP3, OGG and others.

    Channels are averaged, and the rate is changed by a polyphase filter (`scipy.signal.resample_poly`, Kaiser window).
    Then the waveform is divided by its largest magnitude: vocoders give files of different peaks, one of them often
    full scale, and a detector would learn the level.

    Raises `UnreadableSample` for files that are missing, empty, foreign, damaged or truncated, for values that are not
    finite, for silence (a range below -80 dB of full scale), and for more than an hour.
    """
    if rate < 1:
        raise DataError(f"A rate of {rate} Hz cannot be read", "", "give samples in a second, such as 16000")
    if name is None:
        name = str(source) if isinstance(source, str | Path) else source.name if is_stored(source) else "the recording"
    if isinstance(source, str | Path | bytes | bytearray) or is_stored(source):
        with open_content(Path(source) if isinstance(source, str) else source, name) as stream:
            samples, own_rate = _decode(stream, name)
    elif isinstance(source, tuple):
        samples, own_rate = from_pair(source, name)
    else:
        samples, own_rate = mono(source, name), rate  # type: ignore[arg-type]
    return _normalise(samples, own_rate, rate, name)


def mono(samples: Samples, name: str = "the recording") -> np.ndarray:
    """The mean of the channels of an array or tensor, float32 (samples,); integers become shares of their range.

    Raises `UnreadableSample` for what is no waveform.
    """
    values = samples.detach().cpu().numpy() if hasattr(samples, "detach") else samples
    if not isinstance(values, np.ndarray):
        raise UnreadableSample(name, f"a {type(samples).__name__} is no recording, no path and no array")
    if values.dtype.kind not in "iuf" or (values.dtype.kind in "iu" and values.dtype.itemsize > 4):
        raise UnreadableSample(name, f"an array of {values.dtype} is no recording")
    if values.ndim not in (1, 2) or (values.ndim == 2 and min(values.shape) > MAX_CHANNELS):
        raise UnreadableSample(
            name, f"an array of shape {values.shape} is no recording: give (samples,) or (samples, channels)"
        )
    if values.dtype.kind in "iu":
        bits = 8 * values.dtype.itemsize
        middle = 2.0 ** (bits - 1) if values.dtype.kind == "u" else 0.0
        values = (values - middle) / 2.0 ** (bits - 1)
    if not values.size:
        return np.zeros(0, np.float32)
    if values.ndim == 2:
        values = values.mean(axis=int(np.argmin(values.shape)))
    return values.astype(np.float32)


def from_pair(pair: tuple, name: str) -> tuple[np.ndarray, int]:
    """The mean of the channels of (samples, rate), and the rate. Raises `UnreadableSample`."""
    if len(pair) != 2:
        raise UnreadableSample(name, f"a tuple of {len(pair)} is no recording: give (samples, rate)")
    samples, rate = pair
    if not isinstance(rate, int | float | np.number) or not 1 <= rate < 2**31 or rate != int(rate):
        raise UnreadableSample(name, f"{rate!r} is no rate: give samples in a second, a whole number")
    return mono(samples, name), int(rate)


def _decode(stream: BinaryIO, name: str) -> tuple[np.ndarray, int]:
    """The mean of the channels of a sound file, and its rate."""
    import soundfile

    try:
        with soundfile.SoundFile(stream) as file:
            if file.frames < _UNKNOWN:
                _check_length(file.frames, file.samplerate, name)
            blocks: list[np.ndarray] = []
            length = 0
            # SoundFile.blocks would fill up what a truncated file lacks.
            while len(block := file.read(_BLOCK, dtype="float32", always_2d=True)):
                length += len(block)
                _check_length(length, file.samplerate, name)
                blocks.append(block.mean(axis=1))
            _check_whole(file, length, name)
            return np.concatenate(blocks) if blocks else np.zeros(0, np.float32), file.samplerate
    except soundfile.LibsndfileError as error:
        raise UnreadableSample(name, f"damaged, or no sound file known here{_words(error)}") from None
    except (OSError, RuntimeError, TypeError, ValueError) as error:
        raise UnreadableSample(name, f"damaged: it cannot be decoded ({error})") from None


def _words(error: soundfile.LibsndfileError) -> str:
    """The decoder's own words, where they are true of a stream."""
    words = error.error_string.removeprefix("Error : ").rstrip(".")
    return "" if "File does not exist" in words else f" ({words})"


def _check_length(samples: int, rate: int, name: str) -> None:
    if samples > MAX_SECONDS * rate:
        raise UnreadableSample(name, f"too long: more than {MAX_SECONDS // 60} minutes", "cut it into pieces")


def _check_whole(file: soundfile.SoundFile, length: int, name: str) -> None:
    noted = _SHORT.search(file.extra_info)
    claimed, found = map(int, noted.groups()) if noted else (0, 0)
    cut = found < claimed < _STREAMED or _CUT.search(file.extra_info)
    if cut or (file.frames < _UNKNOWN and length < _FORETOLD * file.frames):
        raise UnreadableSample(name, "truncated: the file ends too early")


def _normalise(samples: np.ndarray, own_rate: int, rate: int, name: str) -> np.ndarray:
    if not len(samples):
        raise UnreadableSample(name, "no samples in it: empty, or cut off")
    _check_length(len(samples), own_rate, name)
    if not np.isfinite(samples).all():
        raise UnreadableSample(name, "values that are not finite")
    if np.ptp(samples) / 2 < SILENCE:
        raise UnreadableSample(name, "silent")
    if own_rate != rate:
        from scipy.signal import resample_poly

        divisor = math.gcd(own_rate, rate)
        samples = resample_poly(samples, rate // divisor, own_rate // divisor)
    peak = np.abs(samples).max(initial=0)
    if peak == 0:
        raise UnreadableSample(name, "silent")
    return np.ascontiguousarray(samples / peak, dtype=np.float32)


def encode_audio(samples: np.ndarray, rate: int) -> bytes:
    """A waveform, float32 (samples,), as the bytes of a WAV file that holds it exactly."""
    from scipy.io import wavfile

    buffer = io.BytesIO()
    # soundfile would write the time of day into it, and equal recordings would not be equal bytes.
    wavfile.write(buffer, rate, samples)
    return buffer.getvalue()
