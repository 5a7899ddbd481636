"""A run of ``vmbus-emu bench`` as a page: :func:`bench.report.page.page`."""
