"""Update codecs: named arrays to a checked payload of bytes, and back.

A *codec* says which figures are kept of the floating-point arrays; a *coder* is a lossless stage
behind it. Arrays of integers and booleans (counters) are always sent exactly.
"""

from fedsim.codecs.coders import CODERS, Coder
from fedsim.codecs.payload import HEADER_BYTES, decode, encode, payload_bytes
from fedsim.codecs.registry import CODECS, Codec
from fedsim.errors import CodecError

__all__ = [
    "CODECS",
    "CODERS",
    "HEADER_BYTES",
    "Codec",
    "CodecError",
    "Coder",
    "decode",
    "encode",
    "payload_bytes",
]
