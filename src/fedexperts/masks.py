"""A client's side of secure sums: masks that cancel, so that a server that follows the protocol
sees a sum and no single upload (Bonawitz et al., CCS 2017).

Every pair of clients agrees on a seed (X25519), whose stream (ChaCha20) one adds and the other
takes away; a stream of each client's own lies on top. Secrets are shared among all (Shamir), so
that masks of who drops out are taken off by two thirds of the others: of each client either the one
secret is told or the other, never both. Keys are new in every round. Flower's own primitives draw a
mask from a generator seeded with 32 bits (`secaggplus_utils.pseudo_rand_gen`), which can be tried
out, so only their plan is used. This room does not know what the numbers mean.
"""

import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from .tensors import Tensors, named, pack, under, unpack, write

FRACTION = 24  # bits behind the point: a mean is off by at most 2**-25 of rounding
RANGE = 2**13  # size of a number beyond which an upload does not fit
WEIGHT = 2**25  # examples of all clients together; with the range and the sign, 63 bits
FEWEST = 3  # clients; of two, each could take its own off the sum
KEY, SHARE = 32, 80  # bytes of a key, and of an encrypted pair of shares


def least(clients: int) -> int:
    """How many of so many clients can, and must, take masks off."""
    return 2 * clients // 3 + 1


# ---- bytes, keys, streams


def to_tensor(data: bytes) -> Tensor:
    return torch.frombuffer(bytearray(data), dtype=torch.uint8)


def to_bytes(tensor: Tensor) -> bytes:
    return bytes(tensor.to(torch.uint8).tolist())


def new_key() -> bytes:
    return os.urandom(KEY)


def public(key: bytes) -> bytes:
    from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

    return X25519PrivateKey.from_private_bytes(key).public_key().public_bytes_raw()


def agreed(key: bytes, other: bytes, use: str) -> bytes:
    """A key for one use, which the owner of the other key agrees on."""
    from cryptography.hazmat.primitives.asymmetric.x25519 import (
        X25519PrivateKey,
        X25519PublicKey,
    )
    from cryptography.hazmat.primitives.hashes import SHA256
    from cryptography.hazmat.primitives.kdf.hkdf import HKDF

    shared = X25519PrivateKey.from_private_bytes(key).exchange(
        X25519PublicKey.from_public_bytes(other)
    )
    return HKDF(SHA256(), KEY, None, f"fedexperts {use}".encode()).derive(shared)


def stream(seed: bytes, shapes: Mapping[str, Tensor]) -> Tensors:
    """Uniform numbers of 64 bits in the shapes of these tensors."""
    from cryptography.hazmat.primitives.ciphers import Cipher, algorithms

    cipher = Cipher(algorithms.ChaCha20(seed, bytes(16)), mode=None).encryptor()
    out = {}
    for name in sorted(shapes):
        drawn = bytearray(cipher.update(bytes(8 * shapes[name].numel())))
        numbers = torch.frombuffer(drawn, dtype=torch.int64) if drawn else torch.zeros(0).long()
        out[name] = numbers.reshape(shapes[name].shape)
    return out


def pair_stream(key: bytes, me: str, other: str, other_public: bytes, like: Tensors) -> Tensors:
    """What `me` adds for its pair with another, who adds the opposite."""
    mask = stream(agreed(key, other_public, "mask"), like)
    return mask if me < other else {name: -value for name, value in mask.items()}


def added(one: Tensors, other: Tensors, sign: int = 1) -> Tensors:
    """Modulo 2**64."""
    return {name: one[name] + sign * other[name] for name in one}


# ---- fixed point


def fixed(tensors: Tensors, weight: int, clients: int) -> Tensors:
    """Numbers times a weight, in fixed point; ValueError if they do not fit."""
    if weight * clients > WEIGHT:
        raise ValueError(f"secure sums bear {WEIGHT:,} examples in all; {weight:,} of one are more")
    out = {}
    for name, value in tensors.items():
        largest = float(value.abs().max()) if value.numel() else 0.0
        if not largest <= RANGE:
            raise ValueError(f"secure sums bear numbers up to {RANGE}; {name} has {largest:.4g}")
        out[name] = (value.double() * 2**FRACTION).round().long() * weight
    return out


def floating(sums: Tensors, weight: int, like: Mapping[str, Tensor]) -> Tensors:
    """The mean, from a sum in fixed point."""
    return {
        name: (value.double() / weight / 2**FRACTION).to(like[name].dtype)
        for name, value in sums.items()
    }


# ---- shares of secrets


def split(secret: bytes, needed: int, clients: int) -> list[bytes]:
    """A share for each client; `needed` of them give the secret."""
    from Crypto.Protocol.SecretSharing import Shamir

    halves = [Shamir.split(needed, clients, half, False) for half in (secret[:16], secret[16:])]
    return [one[1] + other[1] for one, other in zip(*halves, strict=True)]


def join(shares: Mapping[int, bytes]) -> bytes:
    """The secret of shares by their client's position."""
    from Crypto.Protocol.SecretSharing import Shamir

    halves = [
        Shamir.combine([(number + 1, share[part]) for number, share in shares.items()], False)
        for part in (slice(0, 16), slice(16, 32))
    ]
    return b"".join(halves)


def boxed(key: bytes, message: bytes) -> bytes:
    from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

    return ChaCha20Poly1305(key).encrypt(bytes(12), message, None)  # each key is used once


def unboxed(key: bytes, data: bytes) -> bytes:
    from cryptography.exceptions import InvalidTag
    from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

    try:
        return ChaCha20Poly1305(key).decrypt(bytes(12), data, None)
    except InvalidTag:
        raise ValueError("a share of a secret is not what its client made") from None


# ---- a client in a round


@dataclass(frozen=True)
class Masks:
    """One client's secrets of one round, on its own disk."""

    folder: Path
    client: str
    round: int

    @property
    def _file(self) -> Path:
        return self.folder / self.client / f"round-{self.round:06d}.masks"

    def begin(self) -> Tensors:
        """New keys; the public ones leave."""
        for old in self._file.parent.glob("*.masks"):
            if old != self._file:
                old.unlink()
        secrets = {name: new_key() for name in ("mask", "box", "seed")}
        told = under(self._state(), "told") if self._file.exists() else {}
        state = {name: to_tensor(key) for name, key in secrets.items()}
        write(self._file, pack(state | named("told", told)))
        return {name: to_tensor(public(secrets[name])) for name in ("mask", "box")}

    def share(self, keys: Tensors) -> Tensors:
        """Shares of this client's secrets, a box for each of the others."""
        state, publics = self._state(), under(keys, "mask")
        names = sorted(publics)
        if len(names) < FEWEST or self.client not in names:
            raise ValueError(f"secure sums need {FEWEST} clients; {len(names)} take part")
        if under(state, "keys"):
            raise ValueError("its secrets of this round were shared before")
        write(self._file, pack(state | named("keys", keys)))
        needed = least(len(names))
        seeds = split(to_bytes(state["seed"]), needed, len(names))
        masks = split(to_bytes(state["mask"]), needed, len(names))
        return {
            f"to.{name}": to_tensor(boxed(self._box(keys, self.client, name), seed + mask))
            for name, seed, mask in zip(names, seeds, masks, strict=True)
        }

    def masked(self, tensors: Tensors, weight: int, others: Collection[str]) -> Tensors:
        """An upload behind its masks with these clients, itself among them."""
        state = self._state()
        publics = under(under(state, "keys"), "mask")
        if self.client not in others or not publics.keys() >= set(others):
            raise ValueError("it is asked to mask with clients whose keys it does not have")
        if len(others) < least(len(publics)):
            raise ValueError(f"{len(others)} of {len(publics)} clients are too few for its masks")
        write(self._file, pack(state | named("with", {name: torch.zeros(0) for name in others})))
        value = fixed(tensors, weight, len(others))
        value = added(value, stream(to_bytes(state["seed"]), value))
        key = to_bytes(state["mask"])
        for other in sorted(set(others) - {self.client}):
            mask = pair_stream(key, self.client, other, to_bytes(publics[other]), value)
            value = added(value, mask)
        return value

    def unmask(self, asked: Tensors) -> Tensors:
        """Shares that take masks off: the own stream's of who is in the sum, the pairs' of who
        dropped out.
        """
        state, alive = self._state(), under(asked, "alive").keys()
        keys, others = under(state, "keys"), under(state, "with").keys()
        told = under(state, "told").keys()
        if told and told != alive:
            raise ValueError("it has told shares for another sum of this round")
        if not alive <= others or len(alive) < least(len(under(keys, "mask"))):
            raise ValueError(f"a sum of {len(alive)} clients is too small for its shares")
        write(self._file, pack(state | named("told", {name: torch.zeros(0) for name in alive})))
        shares = {}
        for name in sorted(others):
            box = self._box(keys, name, self.client)
            plain = unboxed(box, to_bytes(asked[f"from.{name}"]))
            kind, share = ("seed", plain[:KEY]) if name in alive else ("key", plain[KEY:])
            shares[f"{kind}.{name}"] = to_tensor(share)
        return shares

    def _box(self, keys: Tensors, sender: str, receiver: str) -> bytes:
        """The key of what one client sends another, this client being one of them."""
        other = receiver if sender == self.client else sender
        own, theirs = to_bytes(self._state()["box"]), to_bytes(keys[f"box.{other}"])
        return agreed(own, theirs, f"share from {sender} to {receiver}")

    def _state(self) -> Tensors:
        if not self._file.exists():
            raise ValueError(f"it has no keys for round {self.round}")
        return unpack(self._file.read_bytes())
