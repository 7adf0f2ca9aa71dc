"""``feature_loss``: the call, its operator, and one file for each backend."""
