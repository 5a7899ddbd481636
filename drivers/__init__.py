"""DEVICES: what really does the I/O. Drivers import the device interfaces and nothing above them."""
