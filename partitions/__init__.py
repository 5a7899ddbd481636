"""ROLES: what runs in the partitions. ``parent`` and ``child`` never import each other."""
