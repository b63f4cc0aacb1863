"""Texts: reading them, freed of what betrays where they were found."""

from dna_probe.texts.reading import read_text as read_text
