"""What is compiled, and where it lies on the devices."""
