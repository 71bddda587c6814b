"""Simulations of the service in virtual time, and the workloads and acceptance that they are given."""
