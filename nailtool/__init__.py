"""The front door: command line, pipeline and public API."""
