"""Checks for layers, losses, functions, optimizers: gradients, parity of backends, hidden waits."""

from xbp.testing.gradients import check_gradients
from xbp.testing.graphs import RecordingError, emulated_graphs
from xbp.testing.host_sync import HostSyncError, assert_no_host_sync
from xbp.testing.parity import Finding, check_parity, findings

__all__ = [
    "Finding",
    "HostSyncError",
    "RecordingError",
    "assert_no_host_sync",
    "check_gradients",
    "check_parity",
    "emulated_graphs",
    "findings",
]
