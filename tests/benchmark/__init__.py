"""Tests of the benchmark room."""
