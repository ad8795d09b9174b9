"""The seam: the files that Linux offers for memory, their paths, their formats, and trees of them."""
