"""pages -> tokens: the engine of the decode pool."""

from decode.decoder import Decoder

__all__ = ["Decoder"]
