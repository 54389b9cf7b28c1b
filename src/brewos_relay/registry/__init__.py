"""What is kept for good: devices, their keys, and who has them."""
