"""Devices as published, the time that a step takes on them, and the pace of an emulated one. No torch here."""
