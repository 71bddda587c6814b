"""Published measurements of others: losses are fitted on them, and predictions are checked against them."""
