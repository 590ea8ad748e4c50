"""Test whether one deployed graph is slower or larger than another, by paired measurements and a sequential test."""
