"""Parity, accuracy, latency and the report: everything that is measured about built files."""
