#!/usr/bin/env python3
"""Checks digits.tsv and hash.tsv with an implementation of its own (standard library only)."""
import pathlib
import re
import sys

MASK = (1 << 64) - 1
P1, P2, P3 = 0x9E3779B185EBCA87, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9
P4, P5 = 0x85EBCA77C2B2AE63, 0x27D4EB2F165667C5


def rotl(x, n):
    return ((x << n) | (x >> (64 - n))) & MASK


def step(acc, lane):
    return rotl((acc + lane * P2) & MASK, 31) * P1 & MASK


def xxh64(data, seed=0):
    word = lambda at, n: int.from_bytes(data[at:at + n], "little")
    at, end = 0, len(data)
    if end >= 32:
        accs = [(seed + P1 + P2) & MASK, (seed + P2) & MASK, seed, (seed - P1) & MASK]
        while at + 32 <= end:
            accs = [step(acc, word(at + 8 * i, 8)) for i, acc in enumerate(accs)]
            at += 32
        h = sum(rotl(acc, n) for acc, n in zip(accs, (1, 7, 12, 18))) & MASK
        for acc in accs:
            h = ((h ^ step(0, acc)) * P1 + P4) & MASK
    else:
        h = (seed + P5) & MASK
    h = (h + end) & MASK
    while at + 8 <= end:
        h = (rotl(h ^ step(0, word(at, 8)), 27) * P1 + P4) & MASK
        at += 8
    if at + 4 <= end:
        h = (rotl(h ^ (word(at, 4) * P1 & MASK), 23) * P2 + P3) & MASK
        at += 4
    while at < end:
        h = rotl(h ^ (data[at] * P5 & MASK), 11) * P1 & MASK
        at += 1
    h = (h ^ (h >> 33)) * P2 & MASK
    h = (h ^ (h >> 29)) * P3 & MASK
    return h ^ (h >> 32)


def digits(user):
    found = [c for c in user if c in "0123456789"]
    if not found:
        return "no-digit"
    return str(int("".join((["0", "0"] + found)[-3:-1])))


def main():
    here = pathlib.Path(__file__).parent
    legal = re.compile(r"[0-9A-Za-z_.:@-]{1,64}")
    wrong = count = 0
    for name in ("digits.tsv", "hash.tsv"):
        lines = (here / name).read_text("utf-8").split("\n")[:-1]
        head = lines[0].split("\t")
        for line in lines[1:]:
            user, *answers = line.split("\t")
            if not legal.fullmatch(user):
                wanted = ["invalid-id"] + ["-"] * (len(head) - 2)
            elif name == "digits.tsv":
                wanted = [digits(user)]
            else:
                h = xxh64(user.encode())
                wanted = [f"{h:016x}"] + [str(h % int(n)) for n in head[2:]]
            count += 1
            if wanted != answers:
                wrong += 1
                print(f"{name}: {user!r}: the file says {answers}, it is {wanted}")
    print(f"{count} vectors, {wrong} wrong")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
