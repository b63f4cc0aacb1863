import numpy as np
import pytest

from dna_probe.audio.preprocessing import AudioPreprocessing
from dna_probe.errors import DataError

from ..tiny_language import ast_extractor, waveform_extractor


def test_a_waveform_is_read_at_the_rate_of_the_model_from_its_middle():
    reader = AudioPreprocessing(waveform_extractor(), seconds=0.5)
    wave = np.linspace(-1, 1, 3 * reader.rate).astype(np.float32)
    found = reader.load(wave)
    assert found.shape == (8000,) and found.dtype == np.float32
    # Normalised by the extractor: a ramp stays one, and its middle is at zero.
    assert abs(found.mean()) < 1e-3 and (np.diff(found) > 0).all()


def test_a_short_recording_is_repeated_not_padded():
    reader = AudioPreprocessing(waveform_extractor(), seconds=1.0)
    wave = np.sin(np.arange(4000) / 10).astype(np.float32)
    found = reader.load(wave)
    np.testing.assert_allclose(found[:4000], found[4000:8000], atol=1e-6)


def test_as_much_is_read_as_the_extractor_fills_up_to():
    from transformers import ASTFeatureExtractor, WhisperFeatureExtractor

    whisper = AudioPreprocessing(WhisperFeatureExtractor())
    assert whisper.seconds == 30 and whisper.load(np.sin(np.arange(9000))).shape == (80, 3000)
    assert AudioPreprocessing(WhisperFeatureExtractor(), seconds=2).seconds == 2
    assert AudioPreprocessing(ASTFeatureExtractor(num_mel_bins=64)).seconds == 10.24
    assert AudioPreprocessing(waveform_extractor()).seconds == 4


def test_a_spectrogram_has_frames_and_bands():
    reader = AudioPreprocessing(ast_extractor(), seconds=1.0)
    found = reader.load(np.random.default_rng(0).standard_normal(20_000).astype(np.float32))
    assert found.shape == (96, 32) and np.isfinite(found).all()


@pytest.mark.parametrize("make", [waveform_extractor, ast_extractor])
def test_trial_samples_are_of_the_shape_of_real_ones(make):
    reader = AudioPreprocessing(make(), seconds=0.7)
    trial = reader.trial(3)
    assert trial.shape == (
        3,
        *reader.load(np.ones(9000, np.float32) * np.sin(np.arange(9000)).astype(np.float32)).shape,
    )


def test_settings_tell_extractors_apart():
    one, other = (AudioPreprocessing(make()).to_json() for make in (waveform_extractor, ast_extractor))
    assert one["modality"] == "audio" and one != other
    assert AudioPreprocessing(waveform_extractor(), seconds=2).to_json() != one


@pytest.mark.parametrize("seconds", [0, 100])
def test_a_length_that_cannot_be_read_is_refused(seconds):
    with pytest.raises(DataError, match="cannot be read"):
        AudioPreprocessing(waveform_extractor(), seconds=seconds)
