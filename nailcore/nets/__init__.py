"""Networks: the cascade of the paper, its encoders, and the form in which it is exported."""

from nailcore.nets.export_form import ExportForm, load_network

__all__ = ["ExportForm", "load_network"]
