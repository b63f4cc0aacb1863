"""Recordings become one waveform at one rate and level, or are refused with a reason."""

import io
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from dna_probe.audio import reading
from dna_probe.audio.reading import encode_audio, read_audio
from dna_probe.content import StoredSample
from dna_probe.errors import DataError, UnreadableSample

RATE = 16000
FORMATS = {
    "wav": ("WAV", "PCM_16", 1e-3),
    "deep.wav": ("WAV", "PCM_32", 1e-6),
    "float.wav": ("WAV", "FLOAT", 1e-6),
    "eight.wav": ("WAV", "PCM_U8", 0.02),
    "flac": ("FLAC", "PCM_16", 1e-3),
    "ogg": ("OGG", "VORBIS", 0.1),
    "opus.ogg": ("OGG", "OPUS", 0.3),
    "mp3": ("MP3", "MPEG_LAYER_III", 0.1),
    "aiff": ("AIFF", "PCM_16", 1e-3),
    "au": ("AU", "PCM_16", 1e-3),
    "caf": ("CAF", "PCM_16", 1e-3),
}


def tone(seconds=1.0, rate=RATE, hertz=440.0, level=0.25):
    return (level * np.sin(2 * np.pi * hertz * np.arange(round(seconds * rate)) / rate)).astype(np.float32)


def encoded(samples, kind="wav", rate=RATE):
    container, subtype, _ = FORMATS[kind]
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, rate, format=container, subtype=subtype)
    return buffer.getvalue()


def reason_of(source, rate=RATE, seconds=None):
    with pytest.raises(UnreadableSample) as caught:
        read_audio(source, rate, seconds=seconds)
    return caught.value.reason


@pytest.mark.parametrize("kind", FORMATS)
def test_formats_and_sources_agree(tmp_path, kind):
    content = encoded(tone(), kind)
    path = tmp_path / f"a.{kind}"
    path.write_bytes(content)
    found = read_audio(path, RATE)
    assert found.shape == (RATE,) and found.dtype == np.float32 and np.abs(found).max() == 1
    # Lossy formats overshoot at the ends, by which the level is told.
    assert np.median(np.abs(found - tone(level=1.0))) < FORMATS[kind][2]
    for source in (str(path), content, bytearray(content), StoredSample("a", content, "audio")):
        assert np.array_equal(read_audio(source, RATE), found)


def test_samples_in_memory():
    wave = tone(level=1.0)
    whole = np.rint(wave * 32767).astype(np.int16)
    sources = [
        wave,
        wave * 0.01,
        wave.astype(np.float64),
        torch.from_numpy(wave).requires_grad_(),
        torch.from_numpy(wave).half(),
        whole,
        ((whole.astype(np.int32) + 32768).astype(np.uint16)),
        np.stack([wave, wave]),
        np.stack([wave, wave], axis=1),
        np.stack([1.5 * wave, 0.5 * wave]),
        (wave, RATE),
        (wave, float(RATE)),
        (torch.from_numpy(wave)[None], np.int64(RATE)),
        encode_audio(wave, RATE),
    ]
    for source in sources:
        found = read_audio(source, RATE)
        assert found.dtype == np.float32 and np.allclose(found, wave / np.abs(wave).max(), atol=1e-3)
    rough = read_audio(torch.from_numpy(wave).bfloat16(), RATE)
    assert rough.dtype == np.float32 and np.allclose(rough, wave, atol=1e-2)


@pytest.mark.parametrize("own_rate", [8000, 22050, 44100, 48000])
def test_the_rate_changes_and_the_tone_does_not(own_rate):
    found = read_audio((tone(rate=own_rate), own_rate), RATE)
    assert abs(len(found) - RATE) <= 1
    spectrum = np.abs(np.fft.rfft(found[:RATE]))
    assert abs(int(spectrum.argmax()) - 440) <= 1 and np.abs(found).max() == 1


def test_what_lies_above_the_new_rate_does_not_fold_back():
    # 0.1 s away from the ends, where the filter has nothing to look at.
    mixed = tone(rate=44100) + tone(rate=44100, hertz=11000)
    found = read_audio((mixed, 44100), RATE)[1600:-1600]
    spectrum = np.abs(np.fft.rfft(found * np.hanning(len(found))))
    hertz = np.fft.rfftfreq(len(found), 1 / RATE)
    assert spectrum[np.abs(hertz - 5000) < 200].max() < 1e-3 * spectrum.max()


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("own_rate", [8000, 16000, 48000])
def test_the_middle_is_that_of_the_whole(kind, own_rate, rng):
    content = encoded(rng.uniform(-0.5, 0.5, 3 * own_rate + 77), kind, own_rate)
    whole, found = (read_audio(content, RATE, seconds=seconds) for seconds in (None, 0.7))
    start = (len(whole) - len(found)) // 2
    middle = whole[start : start + len(found)]
    assert found.shape == (11200,) and np.abs(found).max() == 1
    assert np.allclose(found, middle / np.abs(middle).max(), atol=1e-5)
    assert np.array_equal(read_audio(content, RATE, seconds=9), whole)


@pytest.mark.parametrize("own_rate", [7919, 11025, 44100])
def test_the_middle_of_samples_in_memory(own_rate, rng):
    samples = rng.uniform(-0.5, 0.5, 2 * own_rate)
    whole, found = (read_audio((samples, own_rate), RATE, seconds=seconds) for seconds in (None, 0.5))
    middle = whole[(len(whole) - 8000) // 2 :][:8000]
    assert np.allclose(found, middle / np.abs(middle).max(), atol=1e-5)


def test_no_more_than_the_middle_is_decoded(monkeypatch):
    content = encoded(tone(60), "flac")
    read = soundfile.SoundFile.read
    asked = []
    monkeypatch.setattr(soundfile.SoundFile, "read", lambda file, n, **more: asked.append(n) or read(file, n, **more))
    assert len(read_audio(content, RATE, seconds=1)) == RATE and sum(asked) < 1.1 * RATE


def test_silence_is_looked_for_in_what_is_judged():
    pause = np.concatenate([tone(), np.zeros(3 * RATE, np.float32), tone()])
    shrill = tone(rate=48000, hertz=20000) * np.hanning(48000)
    for source in (pause, (pause, RATE), encoded(pause)):
        assert len(read_audio(source, RATE)) == 5 * RATE
        with pytest.raises(UnreadableSample, match=r"silent in the middle 2\.5 seconds"):
            read_audio(source, RATE, seconds=2.5)
    assert len(read_audio((shrill, 48000), 48000)) == 48000
    assert reason_of((shrill, 48000)) == "silent at 16000 Hz"
    # A constant has no ends to be heard at.
    assert reason_of((np.full(8000, 0.3), 8000)) == "silent"


def test_level_and_depth_leave_no_trace():
    loud, quiet = (read_audio(encoded(tone(level=level), "deep.wav"), RATE) for level in (0.9, 0.09))
    assert np.allclose(loud, quiet, atol=1e-6)


@pytest.mark.parametrize("kind", ["wav", "float.wav", "flac", "ogg", "opus.ogg", "mp3"])
@pytest.mark.parametrize("seconds", [None, 0.2])
def test_half_a_file_is_not_half_a_recording(kind, seconds, rng):
    # Noise, so that no format stores it in the first half.
    content = encoded(rng.uniform(-0.5, 0.5, 3 * RATE), kind)
    reason = reason_of(content[: len(content) // 2], seconds=seconds)
    assert reason.startswith(("truncated: the file ends too early", "damaged", "no samples in it")), reason


@pytest.mark.parametrize("claimed", [0xFFFFFFFF, 0x7FFFFFFF])
def test_a_wav_that_was_streamed_claims_no_length(claimed):
    content = bytearray(encoded(tone()))
    at = content.index(b"data") + 4
    content[at : at + 4] = claimed.to_bytes(4, "little")
    assert len(read_audio(content, RATE)) == RATE


def test_reasons(tmp_path):
    spoilt = tone()
    spoilt[7] = np.nan
    opposite = np.stack([tone(), -tone()])
    (tmp_path / "empty.wav").write_bytes(b"")
    (tmp_path / "x.raw").write_bytes(b"123" * 99)
    foreign = "damaged, or no sound file known here (Format not recognised)"
    for source, reason in (
        (tmp_path / "no.wav", "no such file"),
        (tmp_path, "a folder, not a file"),
        (tmp_path / "empty.wav", "empty file (0 bytes)"),
        (b"", "empty (0 bytes)"),
        (b"\0" * 999, foreign),
        (b"not a sound file", foreign),
        (Path(__file__), foreign),
        (tmp_path / "x.raw", "damaged: it cannot be decoded (samplerate must be specified)"),
        (encoded(np.zeros(0, np.float32)), "no samples in it: empty, or cut off"),
        (np.zeros((2, 0)), "no samples in it: empty, or cut off"),
        (spoilt, "values that are not finite"),
        (encoded(spoilt, "float.wav"), "values that are not finite"),
        (np.zeros(RATE), "silent"),
        (np.full(RATE, 0.3), "silent"),
        (tone(level=9e-5), "silent"),
        (opposite, "silent"),
        (np.zeros((3, 4, 5)), "an array of shape (3, 4, 5) is no recording: give (samples,) or (samples, channels)"),
        (np.zeros((99, 99)), "an array of shape (99, 99) is no recording: give (samples,) or (samples, channels)"),
        (np.zeros(9, complex), "an array of complex128 is no recording"),
        (np.zeros(9, np.int64), "an array of int64 is no recording"),
        ((tone(), 0), "0 is no rate: give samples in a second, a whole number"),
        ((tone(), 8000.5), "8000.5 is no rate: give samples in a second, a whole number"),
        ((tone(), 10**9), "a sampling rate of 1000000000 Hz: 768000 is the highest"),
        (encode_audio(tone(), 10**9), "a sampling rate of 1000000000 Hz: 768000 is the highest"),
        ((tone(),), "a tuple of 1 is no recording: give (samples, rate)"),
        (None, "a NoneType is no recording, no path and no array"),
    ):
        assert reason_of(source) == reason


def test_an_hour_is_the_most(monkeypatch):
    monkeypatch.setattr(reading, "MAX_SECONDS", 2)
    assert len(read_audio(encoded(tone(2)), RATE)) == 2 * RATE
    for source in (tone(2.1), (tone(2.1, 8000), 8000), encoded(tone(2.1)), encoded(tone(2.1), "mp3")):
        assert reason_of(source).startswith("too long: more than")
    with pytest.raises(DataError, match="A rate of 0 Hz cannot be read"):
        read_audio(tone(), 0)


def test_names_in_messages(tmp_path):
    for source, name, expected in (
        (tmp_path / "a.wav", None, str(tmp_path / "a.wav")),
        (StoredSample("b.wav", b"", "audio"), None, "b.wav"),
        (np.zeros(3), None, "the recording"),
        (np.zeros(3), "recordings[4]", "recordings[4]"),
    ):
        with pytest.raises(UnreadableSample) as caught:
            read_audio(source, RATE, name)
        assert caught.value.name == expected and str(caught.value).startswith(f"Cannot read {expected}: ")


def test_equal_samples_give_equal_bytes():
    assert encode_audio(tone(), RATE) == encode_audio(tone(), RATE) != encode_audio(tone(), 8000)


@pytest.mark.real
def test_real_recordings_of_either_depth(shared_data):
    for path in sorted((shared_data / "audio" / "vocoders").rglob("*_1.wav")):
        found = read_audio(path, RATE)
        assert np.abs(found).max() == 1 and 6.5 * RATE < len(found) < 9 * RATE
