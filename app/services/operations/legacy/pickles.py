"""Reads a pickle as data. Nothing that it names is imported, and nothing that it calls is called.

The opcodes are taken apart by pickletools, which never executes them; what they would build is noted down: a reference
to a class or function is a Name, and what a call of it would give is a Made, with its arguments and its state.
"""

from __future__ import annotations

import pickletools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

LARGEST = 1 << 20
"""Bytes of one pickle. A job's is some hundred; more is no job."""


class UnreadablePickle(ValueError):
    """A pickle that is damaged, or that holds what no job's does. One line."""


@dataclass(frozen=True)
class Name:
    """A class or function that the pickle refers to. Only its name: it is never looked up."""

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


@dataclass(eq=False)
class Made:
    """What calling `maker` with `args` would have built; `state` is what it would then have been given."""

    maker: Any = field(repr=False)
    args: tuple[Any, ...] = field(default=(), repr=False)
    state: Any = field(default=None, repr=False)


class _Mark:
    pass


_MARK = _Mark()
_LITERALS = frozenset(
    {
        *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"),
        *("STRING", "BINSTRING", "SHORT_BINSTRING", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"),
        *("UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"),
    }
)
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_TUPLES = {"EMPTY_TUPLE": 0, "TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_KEYS = (str, int, float, bytes, type(None))
"""What may be a key: hashing a tuple within a tuple within a tuple could exhaust the stack."""


def read_pickle(data: bytes) -> Any:
    """The value that a pickle describes: plain Python values, with Name and Made where it asks for anything else.

    UnreadablePickle for everything that cannot be read, whatever is wrong with it.
    """
    if len(data) > LARGEST:
        raise UnreadablePickle(f"it has {len(data)} bytes; a job's pickle has {LARGEST} at most")
    try:
        return _Reader().read(data)
    except UnreadablePickle:
        raise
    except Exception as error:  # whatever the bytes make of pickletools and of the stack below
        raise UnreadablePickle(f"it is no intact pickle ({type(error).__name__}: {error})"[:300]) from None


class _Reader:
    """The stack and the memo of one pickle."""

    def __init__(self) -> None:
        self._stack: list[Any] = []
        self._memo: dict[int, Any] = {}

    def read(self, data: bytes) -> Any:
        for opcode, argument, _position in pickletools.genops(data):
            name = opcode.name
            if name == "STOP":
                return self._stack.pop()
            if name in _LITERALS:
                self._stack.append(argument)
            elif name in _CONSTANTS:
                self._stack.append(_CONSTANTS[name])
            elif name in _TUPLES:
                self._stack.append(self._take(_TUPLES[name]))
            elif (step := _STEPS.get(name)) is not None:
                step(self, argument)
            else:
                raise UnreadablePickle(f"it holds the opcode {name}, which no job's pickle has")
        raise UnreadablePickle("it ends too early")

    # The stack

    def _take(self, count: int) -> tuple[Any, ...]:
        if count > len(self._stack):
            raise IndexError("pop from empty stack")
        taken = tuple(self._stack[len(self._stack) - count :])
        del self._stack[len(self._stack) - count :]
        return taken

    def _to_mark(self) -> list[Any]:
        for at in range(len(self._stack) - 1, -1, -1):
            if self._stack[at] is _MARK:
                items = self._stack[at + 1 :]
                del self._stack[at:]
                return items
        raise IndexError("no mark on the stack")

    # What the opcodes do

    def mark(self, _argument: Any) -> None:
        self._stack.append(_MARK)

    def nothing(self, _argument: Any) -> None:
        """PROTO and FRAME tell a loader how to read on."""

    def pop(self, _argument: Any) -> None:
        self._stack.pop()

    def pop_mark(self, _argument: Any) -> None:
        self._to_mark()

    def duplicate(self, _argument: Any) -> None:
        self._stack.append(self._stack[-1])

    def put(self, argument: Any) -> None:
        self._memo[int(argument)] = self._stack[-1]

    def memoize(self, _argument: Any) -> None:
        self._memo[len(self._memo)] = self._stack[-1]

    def get(self, argument: Any) -> None:
        self._stack.append(self._memo[int(argument)])

    def empty_list(self, _argument: Any) -> None:
        self._stack.append([])

    def empty_dict(self, _argument: Any) -> None:
        self._stack.append({})

    def empty_set(self, _argument: Any) -> None:
        self._stack.append(Made(Name("builtins", "set"), ([],)))

    def frozen_set(self, _argument: Any) -> None:
        self._stack.append(Made(Name("builtins", "frozenset"), (self._to_mark(),)))

    def add_items(self, _argument: Any) -> None:
        items = self._to_mark()
        made = self._stack[-1]
        if not isinstance(made, Made):
            raise TypeError("items are added to what is no set")
        made.args[0].extend(items)

    def make_list(self, _argument: Any) -> None:
        self._stack.append(self._to_mark())

    def make_tuple(self, _argument: Any) -> None:
        self._stack.append(tuple(self._to_mark()))

    def make_dict(self, _argument: Any) -> None:
        made: dict[Any, Any] = {}
        _set_items(made, self._to_mark())
        self._stack.append(made)

    def append(self, _argument: Any) -> None:
        [item] = self._take(1)
        _as(list, self._stack[-1]).append(item)

    def appends(self, _argument: Any) -> None:
        items = self._to_mark()
        _as(list, self._stack[-1]).extend(items)

    def set_item(self, _argument: Any) -> None:
        items = self._take(2)
        _set_items(_as(dict, self._stack[-1]), list(items))

    def set_items(self, _argument: Any) -> None:
        items = self._to_mark()
        _set_items(_as(dict, self._stack[-1]), items)

    def global_name(self, argument: Any) -> None:
        module, _, name = str(argument).partition(" ")
        self._stack.append(Name(module, name))

    def stack_global(self, _argument: Any) -> None:
        module, name = self._take(2)
        self._stack.append(Name(_as(str, module), _as(str, name)))

    def call(self, _argument: Any) -> None:
        maker, args = self._take(2)
        self._stack.append(Made(maker, _as(tuple, args)))

    def call_with_keywords(self, _argument: Any) -> None:
        maker, args, keywords = self._take(3)
        self._stack.append(Made(maker, (*_as(tuple, args), keywords)))

    def instance(self, argument: Any) -> None:
        module, _, name = str(argument).partition(" ")
        self._stack.append(Made(Name(module, name), tuple(self._to_mark())))

    def object_of(self, _argument: Any) -> None:
        maker, *args = self._to_mark()
        self._stack.append(Made(maker, tuple(args)))

    def build(self, _argument: Any) -> None:
        [state] = self._take(1)
        made = self._stack[-1]
        if not isinstance(made, Made):
            raise TypeError("a state is given to what is no object")
        made.state = state


def _as(kind: Any, value: Any) -> Any:
    if not isinstance(value, kind):
        raise TypeError(f"{kind.__name__} expected, not {type(value).__name__}")
    return value


def _set_items(made: dict[Any, Any], items: list[Any]) -> None:
    if len(items) % 2:
        raise ValueError("a key without a value")
    for key, value in zip(items[::2], items[1::2], strict=True):
        made[_as(_KEYS, key) if not isinstance(key, bool) else key] = value


_STEPS: dict[str, Callable[[_Reader, Any], None]] = {
    "PROTO": _Reader.nothing,
    "FRAME": _Reader.nothing,
    "MARK": _Reader.mark,
    "POP": _Reader.pop,
    "POP_MARK": _Reader.pop_mark,
    "DUP": _Reader.duplicate,
    "PUT": _Reader.put,
    "BINPUT": _Reader.put,
    "LONG_BINPUT": _Reader.put,
    "MEMOIZE": _Reader.memoize,
    "GET": _Reader.get,
    "BINGET": _Reader.get,
    "LONG_BINGET": _Reader.get,
    "EMPTY_LIST": _Reader.empty_list,
    "LIST": _Reader.make_list,
    "APPEND": _Reader.append,
    "APPENDS": _Reader.appends,
    "TUPLE": _Reader.make_tuple,
    "EMPTY_DICT": _Reader.empty_dict,
    "DICT": _Reader.make_dict,
    "SETITEM": _Reader.set_item,
    "SETITEMS": _Reader.set_items,
    "EMPTY_SET": _Reader.empty_set,
    "ADDITEMS": _Reader.add_items,
    "FROZENSET": _Reader.frozen_set,
    "GLOBAL": _Reader.global_name,
    "STACK_GLOBAL": _Reader.stack_global,
    "REDUCE": _Reader.call,
    "NEWOBJ": _Reader.call,
    "NEWOBJ_EX": _Reader.call_with_keywords,
    "INST": _Reader.instance,
    "OBJ": _Reader.object_of,
    "BUILD": _Reader.build,
}
