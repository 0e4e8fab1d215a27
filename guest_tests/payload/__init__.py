"""What runs inside the guest: Python 3.13 with the standard library only, and nothing of the rest of this project."""
