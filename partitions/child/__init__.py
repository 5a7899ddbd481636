"""The child partition: the VSCs and the small guest operating system above them."""
