"""Secure aggregation: the server learns the sum of the clients' vectors, and no single one.

SecAgg+ of Bell, Bonawitz, Gascon, Lepoint and Raykova, "Secure Single-Server Aggregation with
(Poly)Logarithmic Overhead" (CCS 2020), semi-honest variant, on the protocol of Bonawitz et al.
(CCS 2017). With x_i a client's vector, b_i a seed of its own and s_ij a seed that it shares with
its neighbour j, it sends

    y_i = x_i + PRG(b_i) + sum over neighbours j > i of PRG(s_ij) - sum over j < i of PRG(s_ij).

In the sum over all clients the masks of pairs cancel. Neighbours hold shares of b_i and of the key
that the s_ij come from; the server asks for b_i of those in the sum, and for the key of those that
vanished after others had masked with them.

**What holds.** Against a server that follows the protocol and is curious, together with up to the
assumed share of clients that tell it all they know (:class:`Assumptions`): it learns the sum over
at least ``least_clients`` of them, who took part, and no more of a vector. That sum is exact.
Keys, shares and masks have 256 bits of the operating system's randomness; X25519 and what follows
from it are worth about 128 bits.

**What does not hold.**

- *A server that lies.* Nothing is signed, so clients cannot tell each other's keys from keys that
  the server made up: with its own keys in place of all neighbours' it reads everything. There is no
  consistency check of the survivors either (Bonawitz et al., round 3), which needs signatures. What
  is in the way of a lying server without invented clients: a client answers each stage once, for
  exactly those whose shares it was given, with one kind of share each, and t > k/2, so that it
  cannot gather both secrets of anybody from honest neighbours.
- *What the sum itself says.* The sum of few, or of many rounds with slightly different cohorts,
  tells of single vectors. Against that stands differential privacy, not this.
- *A client that lies.* It can send any vector: a masked one cannot be looked at, so no bound on its
  norm can be checked, and no single update can be left out. It can also make a round abort. Wrong
  shares are found, since a recovered secret has to match what its owner advertised.
- *Who took part*, when, and how large the messages are.

Files, in the order of reading: ``messages`` (the stages), ``keys``, ``sharing``, ``masks``,
``encoding`` (vectors to words), ``graph`` (who shares with whom), ``client``, ``server``,
``protocol`` (a round as a page), ``state`` and ``wire`` (as bytes and integers).
"""

from fedsim.privacy.secagg.client import ClientSide
from fedsim.privacy.secagg.encoding import FixedPoint
from fedsim.privacy.secagg.graph import Assumptions
from fedsim.privacy.secagg.messages import STAGES, Session
from fedsim.privacy.secagg.protocol import aggregate
from fedsim.privacy.secagg.server import SecureSum, ServerSide
from fedsim.privacy.secagg.state import begin, from_state, to_state

__all__ = [
    "STAGES",
    "Assumptions",
    "ClientSide",
    "FixedPoint",
    "SecureSum",
    "ServerSide",
    "Session",
    "aggregate",
    "begin",
    "from_state",
    "to_state",
]
