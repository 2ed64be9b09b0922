"""What drafting will cost, from configs alone: sizes of a pair, numbers of a device, seconds of every stage."""
