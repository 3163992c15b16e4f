"""The offline HTML report: a pure function of facts."""

from benchmark.report.bundle import DamagedFile, Overlay, ReportContext, ReportInput, StaleFact
from benchmark.report.collect import collect_facts
from benchmark.report.render import render_report, write_report

__all__ = [
    "DamagedFile",
    "Overlay",
    "ReportContext",
    "ReportInput",
    "StaleFact",
    "collect_facts",
    "render_report",
    "write_report",
]
