"""Where the parts meet."""

from proxy.app.assembly import Service, monotonic

__all__ = ["Service", "monotonic"]
