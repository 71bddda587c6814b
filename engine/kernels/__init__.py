"""What computes faster than the torch reference, and gives the same numbers up to rounding.

linear.py  matrices in oneDNN's own order, for linear layers on a CPU
"""

from engine.kernels.linear import pack_linears

__all__ = ["pack_linears"]
