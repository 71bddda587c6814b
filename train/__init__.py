"""Trains what Sparkpool ships: a small DeepSeek-V3 model with its next-token module, and measures it."""
