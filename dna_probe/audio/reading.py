"""One recording in, one normalised waveform or a plain reason out."""

from __future__ import annotations

import io
import math
import re
from dataclasses import dataclass
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
# A header may claim any; this is twice what the dearest converters sample at.
MAX_RATE = 768_000
MAX_CHANNELS = 32
# -80 dB of full scale, three steps of 16 bits: what swings no further is silent.
SILENCE = 1e-4
_BLOCK = 1 << 16
# So far the filter of `resample_poly` reaches, in steps of the coarser of both rates.
_REACH = 10
# In these formats a frame borrows bits of those before it, and the decoder complains where they were not read.
_BORROWING = ("MP3",)
# So many samples stand for an unknown number.
_UNKNOWN = 1 << 60
# A decoder may foretell the length of a compressed file a little wrong.
_FORETOLD = 0.95
# libsndfile's note on a data chunk that claims more bytes than the file has; larger claims are those of a stream.
_SHORT = re.compile(r"\bdata : (\d+) \(should be (\d+)\)")
_STREAMED = 0x7FFF0000
# Its notes on half a page at the end; that the last page is not marked as such is common in recorded streams.
_CUT = re.compile(r"Ogg ?: (?:Junk after the last page|File ended unexpectedly)")


def read_audio(source: AudioSource, rate: int, name: str | None = None, seconds: float | None = None) -> np.ndarray:
    """The waveform of a recording, float32 (samples,) at `rate` Hz, one channel, its largest magnitude 1.

    Of a recording longer than `seconds` only the middle of that length is read; None reads all of it.

    `source` is a path, the bytes of a sound file, a stored source, the pair (samples, their rate), or samples that have
    the rate already: an array or tensor (samples,) or with channels along its shorter side, of floats, or of integers
    of up to 32 bits over their whole range. Files are what libsndfile reads: WAV, FLAC, MP3, OGG and others.

    Channels are averaged, and the rate is changed by a polyphase filter (`scipy.signal.resample_poly`, Kaiser window).
    Then what was read is divided by its largest magnitude: vocoders give files of different peaks, one of them often
    full scale, and a detector would learn the level.

    Raises `UnreadableSample` for files that are missing, empty, foreign or damaged, or truncated where they say how
    long they are; for values that are not finite, for silence in what is read (a range below -80 dB of full scale) or
    in what the new rate leaves of it, for more than an hour, and for a sampling rate above `MAX_RATE`.
    """
    if rate < 1:
        raise DataError(f"A rate of {rate} Hz cannot be read", "", "give samples in a second, such as 16000")
    if name is None:
        name = str(source) if isinstance(source, str | Path) else source.name if is_stored(source) else "the recording"
    if isinstance(source, str | Path | bytes | bytearray) or is_stored(source):
        with open_content(Path(source) if isinstance(source, str) else source, name) as stream:
            samples, span = _decode(stream, rate, seconds, name)
    else:
        pair = from_pair(source, name) if isinstance(source, tuple) else (mono(source, name), rate)  # type: ignore[arg-type]
        whole, own_rate = pair
        span = _Span.middle(len(whole), own_rate, rate, seconds, name)
        samples = whole[span.start : span.stop]
    return _normalise(samples, span, name)


def mono(samples: Samples, name: str = "the recording") -> np.ndarray:
    """The mean of the channels of an array or tensor, float32 (samples,); integers become shares of their range.

    Raises `UnreadableSample` for what is no waveform.
    """
    values = _array(samples) if hasattr(samples, "detach") else samples
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


def _array(tensor: Any) -> np.ndarray:
    tensor = tensor.detach().cpu()
    # NumPy has no bfloat16.
    return (tensor.float() if tensor.dtype.is_floating_point else tensor).numpy()


def from_pair(pair: tuple, name: str) -> tuple[np.ndarray, int]:
    """The mean of the channels of (samples, rate), and the rate. Raises `UnreadableSample`."""
    if len(pair) != 2:
        raise UnreadableSample(name, f"a tuple of {len(pair)} is no recording: give (samples, rate)")
    samples, rate = pair
    if not isinstance(rate, int | float | np.number) or not 1 <= rate < 2**31 or rate != int(rate):
        raise UnreadableSample(name, f"{rate!r} is no rate: give samples in a second, a whole number")
    _check_rate(int(rate), name)
    return mono(samples, name), int(rate)


@dataclass(frozen=True)
class _Span:
    """The samples `start` to `stop` of a recording at `own_rate`, of which those wanted at `rate` can be made.

    `skip` of the samples that they give at the new rate lie before the `keep` that are wanted. `words` are what these
    are of the recording, for messages.
    """

    start: int
    stop: int
    own_rate: int
    rate: int
    skip: int
    keep: int
    words: str = ""

    @classmethod
    def middle(cls, length: int, own_rate: int, rate: int, seconds: float | None, name: str) -> _Span:
        """The middle seconds of a recording of that length; all of it where it is shorter, or where None is asked for.

        Raises `UnreadableSample` where there are no samples, or more than an hour of them.
        """
        if not length:
            raise UnreadableSample(name, "no samples in it: empty, or cut off")
        _check_length(length, own_rate, name)
        up, down = _factors(own_rate, rate)
        whole = -(-length * up // down)
        keep = whole if seconds is None else min(whole, round(seconds * rate))
        first = (whole - keep) // 2
        margin = _REACH * max(up, down)
        # A multiple of `down`, so that the new samples stand where those of the whole would.
        start = max(0, (first * down - margin) // (up * down) * down)
        stop = min(length, ((first + keep) * down + margin) // up + 1)
        words = "" if keep == whole else f" in the middle {seconds:g} seconds"
        return cls(start, stop, own_rate, rate, first - start * up // down, keep, words)


def _factors(own_rate: int, rate: int) -> tuple[int, int]:
    """By which to multiply and to divide the number of samples."""
    divisor = math.gcd(own_rate, rate)
    return rate // divisor, own_rate // divisor


def _decode(stream: BinaryIO, rate: int, seconds: float | None, name: str) -> tuple[np.ndarray, _Span]:
    """The mean of the channels of the part of a sound file that is wanted, and which part it is."""
    import soundfile

    try:
        with soundfile.SoundFile(stream) as file:
            _check_rate(file.samplerate, name)
            stated = file.frames < _UNKNOWN
            if stated:
                _check_length(file.frames, file.samplerate, name)
            span = None
            if stated and seconds is not None:
                span = _Span.middle(file.frames, file.samplerate, rate, seconds, name)
                if file.format not in _BORROWING:
                    _check_whole(file, _reaches(file, _FORETOLD), name)
                    file.seek(span.start)
                    return file.read(span.stop - span.start, dtype="float32", always_2d=True).mean(axis=1), span
            samples, length = _read(file, span, name)
            _check_whole(file, not stated or length >= _FORETOLD * file.frames, name)
            if span is None:
                span = _Span.middle(length, file.samplerate, rate, seconds, name)
                samples = samples[span.start : span.stop]
            return samples, span
    except soundfile.LibsndfileError as error:
        raise UnreadableSample(name, f"damaged, or no sound file known here{_words(error)}") from None
    except (OSError, RuntimeError, TypeError, ValueError) as error:
        raise UnreadableSample(name, f"damaged: it cannot be decoded ({error})") from None


def _read(file: soundfile.SoundFile, span: _Span | None, name: str) -> tuple[np.ndarray, int]:
    """The mean of the channels of the samples in the span, or of all, and how many there are in the file."""
    kept = [np.zeros(0, np.float32)]
    length = 0
    # SoundFile.blocks would fill up what a truncated file lacks.
    while len(block := file.read(_BLOCK, dtype="float32", always_2d=True)):
        wanted = block if span is None else block[max(0, span.start - length) : max(0, span.stop - length)]
        kept.append(wanted.mean(axis=1))
        length += len(block)
        _check_length(length, file.samplerate, name)
    return np.concatenate(kept), length


def _reaches(file: soundfile.SoundFile, share: float) -> bool:
    """Whether a file can be read at this share of the length that it states."""
    import soundfile

    try:
        file.seek(int(share * (file.frames - 1)))
        return len(file.read(1)) == 1
    except soundfile.LibsndfileError:
        return False


def _words(error: soundfile.LibsndfileError) -> str:
    """The decoder's own words, where they are true of a stream."""
    words = error.error_string.removeprefix("Error : ").rstrip(".")
    return "" if "File does not exist" in words else f" ({words})"


def _check_rate(rate: int, name: str) -> None:
    if rate > MAX_RATE:
        raise UnreadableSample(name, f"a sampling rate of {rate} Hz: {MAX_RATE} is the highest")


def _check_length(samples: int, rate: int, name: str) -> None:
    if samples > MAX_SECONDS * rate:
        raise UnreadableSample(name, f"too long: more than {MAX_SECONDS // 60} minutes", "cut it into pieces")


def _check_whole(file: soundfile.SoundFile, complete: bool, name: str) -> None:
    noted = _SHORT.search(file.extra_info)
    claimed, found = map(int, noted.groups()) if noted else (0, 0)
    cut = found < claimed < _STREAMED or _CUT.search(file.extra_info)
    if cut or not complete:
        raise UnreadableSample(name, "truncated: the file ends too early")


def _normalise(samples: np.ndarray, span: _Span, name: str) -> np.ndarray:
    if not np.isfinite(samples).all():
        raise UnreadableSample(name, "values that are not finite")
    _check_sound(samples, span.words, name)
    if span.own_rate != span.rate:
        from scipy.signal import resample_poly

        samples = resample_poly(samples, *_factors(span.own_rate, span.rate))
    samples = samples[span.skip : span.skip + span.keep]
    # Once more: what was heard may lie beside the middle, or higher than the new rate can hold.
    _check_sound(samples, f"{span.words} at {span.rate} Hz" if span.own_rate != span.rate else span.words, name)
    return np.ascontiguousarray(samples / np.abs(samples).max(), dtype=np.float32)


def _check_sound(samples: np.ndarray, where: str, name: str) -> None:
    if not len(samples):
        raise UnreadableSample(name, f"no samples{where}")
    if np.ptp(samples) / 2 < SILENCE:
        raise UnreadableSample(name, f"silent{where}")


def encode_audio(samples: np.ndarray, rate: int) -> bytes:
    """A waveform, float32 (samples,), as the bytes of a WAV file that holds it exactly."""
    from scipy.io import wavfile

    buffer = io.BytesIO()
    # soundfile would write the time of day into it, and equal recordings would not be equal bytes.
    wavfile.write(buffer, rate, samples)
    return buffer.getvalue()
