"""Networks of others: their configs and tensors, in and out."""
