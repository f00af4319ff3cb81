"""What a task is: a function with a name, a description and typed parameters.

The parameters come from the function's signature. Their values come from JSON (a job's kwargs), so each one
is checked and coerced by pydantic before it reaches the function.
"""

from __future__ import annotations

import inspect
import json
import re
import sys
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from pydantic import ConfigDict, TypeAdapter
from pydantic import ValidationError as PydanticError
from pydantic.errors import PydanticUserError

from app.errors import _N, ValidationError

DECLARED_TASKS = "__whalefall_tasks__"
"""Name in a module's globals under which its declared tasks wait for the registry."""

_NAME = re.compile(r"[^\W_][\w.-]{0,99}")
_RUN = "run"

# "constants": an infinity inside an unannotated value shall be refused, not stored as null.
_CONFIG = ConfigDict(allow_inf_nan=False, ser_json_inf_nan="constants")

_F = TypeVar("_F", bound=Callable[..., Any])


@dataclass(frozen=True)
class Parameter:
    """One keyword that a task accepts.

    type_name: the annotation as it is written in Python, such as `int`, `str | None`, `Literal['a', 'b']`.
    default is None when `required`. It is never stored with a job, so that a later change of it takes effect.
    """

    name: str
    type_name: str
    required: bool
    default: Any = None
    adapter: TypeAdapter[Any] = field(repr=False, compare=False, kw_only=True)

    def check(self, value: Any) -> Any:
        """`value` as the annotated type; ValidationError, field `kwargs.<name>`, when it does not fit."""
        try:
            return self.adapter.validate_python(value)
        except PydanticError as error:
            first = error.errors(include_url=False, include_context=False)[0]
            where = "".join(f".{part}" for part in first["loc"] if isinstance(part, (str, int)))
            raise ValidationError(
                _N("任务参数 %(name)s 的值无效：%(reason)s"),
                field=f"kwargs.{self.name}",
                value=value,
                accepted=self.type_name,
                params={"name": f"{self.name}{where}", "reason": first["msg"]},
            ) from error

    def as_json(self, value: Any) -> Any:
        """A checked `value` in the JSON form in which it is stored; ValidationError when it has none."""
        try:
            plain = self.adapter.dump_python(value, mode="json")
            json.dumps({self.name: plain}, allow_nan=False, ensure_ascii=False).encode()
        except (ValueError, TypeError, RecursionError) as error:
            # NaN, infinity, lone surrogates, endless nesting: no JSON store gives these back unchanged.
            raise ValidationError(
                _N("任务参数 %(name)s 的值无法保存为 JSON"),
                field=f"kwargs.{self.name}",
                value=value,
                accepted=self.type_name,
                params={"name": self.name},
            ) from error
        return plain

    def describe(self) -> dict[str, Any]:
        """For the API and forms: name, type, required, default, and the JSON schema of its values."""
        described: dict[str, Any] = {"name": self.name, "type": self.type_name, "required": self.required}
        try:
            described["schema"] = self.adapter.json_schema()
        except PydanticUserError:
            described["schema"] = {}  # a type that pydantic checks but JSON schema cannot say
        if not self.required:
            described["default"] = self.adapter.dump_python(self.default, mode="json", fallback=repr, warnings=False)
        return described


@dataclass(frozen=True)
class Task:
    """A registered function.

    name: what jobs call it. func_ref: `module:function`, for display. wants_run: the function asks for `run`.
    extra: checks the values of further keywords when the function takes `**kwargs`, else None.
    takes_manual_context: a manual run also passes `manual_run=True` and `created_by`.
    cpu_bound: better run by the `process` executor than by threads.
    """

    name: str
    description: str
    function: Callable[..., Any] = field(repr=False)
    parameters: tuple[Parameter, ...]
    wants_run: bool
    func_ref: str
    extra: Parameter | None = None
    takes_manual_context: bool = False
    cpu_bound: bool = False

    def arguments(self, kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """`kwargs` checked and coerced to the annotated Python types; those not given are left out.

        ValidationError, field `kwargs.<name>`, for the first that is unknown, missing or of the wrong type.
        """
        return {name: checked for name, _, checked in self._checked(kwargs)}

    def stored_kwargs(self, kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """The same, in JSON form: what a job stores."""
        return {name: parameter.as_json(checked) for name, parameter, checked in self._checked(kwargs)}

    def call(self, kwargs: Mapping[str, Any], run: Any) -> Any:
        """Run the function with checked `kwargs`, and `run` when it asks for it. Its errors come through."""
        arguments = self.arguments(kwargs)
        if self.wants_run:
            arguments[_RUN] = run
        return self.function(**arguments)

    def describe(self) -> dict[str, Any]:
        """For the API and forms: everything about the task but its function."""
        return {
            "name": self.name,
            "description": self.description,
            "func": self.func_ref,
            "parameters": [parameter.describe() for parameter in self.parameters],
            "accepts_extra": self.extra is not None,
            "takes_manual_context": self.takes_manual_context,
            "cpu_bound": self.cpu_bound,
        }

    def _checked(self, kwargs: Mapping[str, Any]) -> list[tuple[str, Parameter, Any]]:
        known = {parameter.name: parameter for parameter in self.parameters}
        checked = []
        for name, value in kwargs.items():
            parameter = known.get(name)
            if parameter is None and self.extra is not None and isinstance(name, str) and name != _RUN:
                parameter = Parameter(name, self.extra.type_name, False, adapter=self.extra.adapter)
            if parameter is None:
                raise ValidationError(
                    _N("任务 %(task)s 没有参数 %(name)s"),
                    field=f"kwargs.{name}",
                    value=value,
                    accepted=list(known),
                    params={"task": self.name, "name": name},
                )
            checked.append((name, parameter, parameter.check(value)))
        for parameter in self.parameters:
            if parameter.required and parameter.name not in kwargs:
                raise ValidationError(
                    _N("任务 %(task)s 缺少必填参数 %(name)s"),
                    field=f"kwargs.{parameter.name}",
                    value=None,
                    accepted=parameter.type_name,
                    params={"task": self.name, "name": parameter.name},
                )
        return checked


def task(
    name: str, *, description: str = "", takes_manual_context: bool = False, cpu_bound: bool = False
) -> Callable[[_F], _F]:
    """Declare the decorated function as the task `name`; the function itself stays as it is.

    description: one line for people; the first line of the function's docstring when left out.
    The keyword `run` is reserved: a function that has it receives the run (id, job_id, scheduled_for, node,
    kind, attempt); it is no parameter of the task.
    TypeError when the name or the signature cannot serve: a coroutine, a generator, positional-only
    parameters, an annotation that pydantic cannot check.
    """
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise TypeError(
            f"task name {name!r}: expected 1 to 100 letters, digits, '_', '-' or '.', a letter or digit first"
        )
    # The module that declares, whatever other decorators wrapped the function meanwhile.
    module = sys._getframe(1).f_globals

    def declare(function: _F) -> _F:
        declared = Task(
            name=name,
            description=description or (inspect.getdoc(function) or "").partition("\n")[0],
            function=function,
            func_ref=f"{module.get('__name__')}:{getattr(function, '__qualname__', name)}",
            takes_manual_context=takes_manual_context,
            cpu_bound=cpu_bound,
            **_read_signature(name, function),
        )
        module.setdefault(DECLARED_TASKS, []).append(declared)
        return function

    return declare


def _read_signature(name: str, function: Callable[..., Any]) -> dict[str, Any]:
    if inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function):
        raise TypeError(f"task {name!r}: a coroutine function would be called but never awaited")
    if inspect.isgeneratorfunction(function):
        raise TypeError(f"task {name!r}: a generator function would be called but never run")
    signature = inspect.signature(function)
    hints = _type_hints(name, function, signature)
    parameters: list[Parameter] = []
    extra: Parameter | None = None
    wants_run = False
    for parameter in signature.parameters.values():
        if parameter.kind is inspect.Parameter.VAR_POSITIONAL:
            continue  # kwargs come by name, so it stays empty
        if parameter.kind is inspect.Parameter.POSITIONAL_ONLY:
            raise TypeError(f"task {name!r}: {parameter.name!r} is positional-only, but arguments have names")
        if parameter.kind is inspect.Parameter.VAR_KEYWORD:
            extra = _parameter(name, parameter, hints)
        elif parameter.name == _RUN:
            wants_run = True
        else:
            parameters.append(_parameter(name, parameter, hints))
    return {"parameters": tuple(parameters), "extra": extra, "wants_run": wants_run}


def _type_hints(name: str, function: Callable[..., Any], signature: inspect.Signature) -> dict[str, Any]:
    # `run` and the return value are never checked, and are often annotated with names that exist for type
    # checkers only: they are not evaluated.
    target = inspect.unwrap(function)
    annotations = {
        parameter.name: parameter.annotation
        for parameter in signature.parameters.values()
        if parameter.annotation is not inspect.Parameter.empty and parameter.name != _RUN
    }
    holder = type("Annotations", (), {})()
    holder.__annotations__ = annotations
    try:
        return typing.get_type_hints(holder, globalns=getattr(target, "__globals__", {}), include_extras=True)
    except Exception as error:  # annotations are code: evaluating them can raise anything
        raise TypeError(f"task {name!r}: an annotation cannot be evaluated: {error}") from error


def _parameter(task_name: str, parameter: inspect.Parameter, hints: Mapping[str, Any]) -> Parameter:
    annotation = hints.get(parameter.name, Any)
    variadic = parameter.kind is inspect.Parameter.VAR_KEYWORD
    required = parameter.default is inspect.Parameter.empty and not variadic
    default = None if parameter.default is inspect.Parameter.empty else parameter.default
    type_name = inspect.formatannotation(_without_metadata(annotation))
    adapter = _adapter(task_name, parameter.name, annotation)
    if not required and not variadic and default is None and not _accepts_none(adapter):
        # `x: str = None` says that None is meant to be passed.
        adapter = _adapter(task_name, parameter.name, annotation | None)
        type_name = f"{type_name} | None"
    return Parameter(parameter.name, type_name, required, default, adapter=adapter)


def _without_metadata(annotation: Any) -> Any:
    """`annotation` for people: what `Annotated` adds shows in the schema."""
    holder = type("Annotations", (), {})()
    holder.__annotations__ = {"it": annotation}
    return typing.get_type_hints(holder)["it"]


def _adapter(task_name: str, parameter_name: str, annotation: Any) -> TypeAdapter[Any]:
    try:
        try:
            return TypeAdapter(annotation, config=_CONFIG)
        except PydanticUserError as error:
            if error.code != "type-adapter-config-unused":
                raise
            return TypeAdapter(annotation)  # a model or dataclass, which brings its own configuration
    except PydanticUserError as error:
        reason = str(error).partition("\n")[0]
        raise TypeError(
            f"task {task_name!r}: the annotation of {parameter_name!r} cannot be checked: {reason}"
        ) from error


def _accepts_none(adapter: TypeAdapter[Any]) -> bool:
    try:
        adapter.validate_python(None)
    except PydanticError:
        return False
    return True
