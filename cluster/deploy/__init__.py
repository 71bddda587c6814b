"""Checks of cluster files and configurations before anything is started."""
