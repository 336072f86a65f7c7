"""The data sets: embedded ones, and folders in common layouts."""
