"""Several requests in one decoder: each its own row of every buffer, free rows taken by the next request at once."""
