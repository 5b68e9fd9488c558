"""Checks of layers, losses, functions and optimizers: gradients, parity, hidden waits."""

from xbp.testing.finding import Finding
from xbp.testing.gradients import check_gradients
from xbp.testing.graphs import emulated_graphs
from xbp.testing.host_sync import assert_no_host_sync
from xbp.testing.parity import OnlyReferenceWarning, check_parity, findings
from xbp.testing.strict_devices import as_strict_as_cupy
from xbp.testing.strictness import HostSyncError, RecordingError

__all__ = [
    "Finding",
    "HostSyncError",
    "OnlyReferenceWarning",
    "RecordingError",
    "as_strict_as_cupy",
    "assert_no_host_sync",
    "check_gradients",
    "check_parity",
    "emulated_graphs",
    "findings",
]
