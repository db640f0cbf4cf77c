"""Random changes of files, with seeds."""

import random
from copy import deepcopy
from typing import Any

ODD: list[Any] = [
    None,
    True,
    False,
    0,
    -1,
    1,
    3,
    2**31,
    2**70,
    0.5,
    -1e300,
    "",
    "x",
    "../x",
    "\0",
    [],
    [[]],
    {},
    {"a": 1},
]


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Return the paths of all values in a parsed JSON file."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(place for key, item in inner for place in places(item, (*path, key)))]


def change_value(content: Any, chance: random.Random) -> Any:
    place = chance.choice(places(content)[1:] or [()])
    if not place:
        return deepcopy(chance.choice(ODD))
    holder = content
    for key in place[:-1]:
        holder = holder[key]
    action = chance.randrange(4)
    if action == 0 and isinstance(holder, dict):
        del holder[place[-1]]
    elif action == 1 and isinstance(holder, dict):
        holder[f"{place[-1]}_"] = holder.pop(place[-1])
    elif action == 2 and type(holder[place[-1]]) is int:
        holder[place[-1]] = holder[place[-1]] + chance.choice([-1, 1, 7, 8])
    else:
        holder[place[-1]] = deepcopy(chance.choice(ODD))
    return content


def change_bytes(content: bytes, chance: random.Random, limit: int) -> bytes:
    changed = bytearray(content)
    for _ in range(chance.choice([1, 1, 2, 8])):
        place = chance.randrange(min(limit, len(changed)))
        action = chance.randrange(4)
        if action == 0:
            changed[place] = chance.randrange(256)
        elif action == 1:
            del changed[place : place + chance.choice([1, 3, 100])]
        elif action == 2:
            changed[place:place] = bytes(chance.randrange(256) for _ in range(chance.choice([1, 8])))
        else:
            changed[place] ^= 1 << chance.randrange(8)
    return bytes(changed)
