"""What all rooms stand on: the two names of Lightning, files, and what happens on a failure."""
