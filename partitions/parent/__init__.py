"""The parent partition: the VMBus provider, the VSPs and management."""
