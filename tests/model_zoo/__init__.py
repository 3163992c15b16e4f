"""Tests of the room model_zoo."""
