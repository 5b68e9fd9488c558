"""What a run has learned, on one page: HTML that opens offline and needs nothing else."""

from xbp.report.page import check_packages, write_report

__all__ = ["check_packages", "write_report"]
