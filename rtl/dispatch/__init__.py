"""The dispatcher: assignments in, one queue per expert and window, whole queues out to the units.

See ``docs/dispatch.md``.
"""

from rtl.dispatch.dispatcher import Dispatch
from rtl.dispatch.layouts import DispatchConfig, ServicePolicy, expect_layout

__all__ = ["Dispatch", "DispatchConfig", "ServicePolicy", "expect_layout"]
