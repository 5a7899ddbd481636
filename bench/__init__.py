"""MEASURING: commands that time the machine. Nothing here is a test, and no test times anything."""
