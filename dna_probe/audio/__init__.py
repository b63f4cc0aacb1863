"""Recordings: reading them at one rate and level, whatever file they lie in."""

from dna_probe.audio.reading import read_audio as read_audio
