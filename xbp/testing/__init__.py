"""Checks for layers, losses, functions, optimizers: gradients, parity of backends, hidden waits."""

from xbp.testing.gradients import check_gradients
from xbp.testing.host_sync import HostSyncError, assert_no_host_sync
from xbp.testing.parity import Finding, check_parity, findings

__all__ = [
    "Finding",
    "HostSyncError",
    "assert_no_host_sync",
    "check_gradients",
    "check_parity",
    "findings",
]
