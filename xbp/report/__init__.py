"""The report of a run: one self-contained HTML page."""

from xbp.report.page import check_packages, write_report

__all__ = ["check_packages", "write_report"]
