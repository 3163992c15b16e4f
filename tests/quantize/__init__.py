"""Tests of the room quantize."""
