"""Which ids are frequent: text in, counts, and the list that comes of them."""
