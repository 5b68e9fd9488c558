"""Checks for layers and losses, xbp's and your own: gradients, parity of backends, hidden waits."""

from xbp.testing.gradients import check_gradients
from xbp.testing.host_sync import HostSyncError, assert_no_host_sync
from xbp.testing.parity import check_parity

__all__ = ["HostSyncError", "assert_no_host_sync", "check_gradients", "check_parity"]
