"""Roles: services beside the VMs, each in a process of its own of the parent partition. They hold no virtual processor
and make no hypercall; nothing of a VM's I/O goes through them."""
