"""Tests of the room nailcore."""
