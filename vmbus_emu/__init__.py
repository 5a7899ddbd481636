"""vmbus-emu: hypervisor architectures as real processes on one Linux machine."""

__version__ = "0.1.0"
