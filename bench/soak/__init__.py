"""A soak: thousands of requests in every mixture through one decoder; outputs equal to a serial replay, memory flat."""
