"""What pydantic refuses, as the contract's validation error: field, what it held, what is accepted."""

from __future__ import annotations

import re

import pydantic

from app.errors import _N, ValidationError

NOT_AN_OBJECT_KINDS = ("model_type", "model_attributes_type", "dict_type")


def refused_input(error: pydantic.ValidationError) -> ValidationError:
    """The first thing that pydantic found wrong."""
    first = error.errors(include_url=False)[0]
    kind, message = first["type"], first["msg"].removeprefix("Value error, ")
    # The inputs are flat; what may follow a field's name is pydantic's word for a branch of its type.
    field = str(first["loc"][0]) if first["loc"] else ""
    if not field:
        if kind in NOT_AN_OBJECT_KINDS:
            return ValidationError(_N("请求体必须是非空的 JSON 对象"))
        return ValidationError(context={"accepted": message})
    if kind == "missing":
        return ValidationError(_N("缺少字段 %(field)s"), params={"field": field}, field=field, accepted=_N("必填"))
    if kind == "extra_forbidden":
        return ValidationError(
            _N("未知的字段 %(field)s"),
            params={"field": field},
            field=field,
            value=first["input"],
            accepted=_N("没有这个字段"),
        )
    accepted: object = message
    if kind == "literal_error":
        accepted = re.findall(r"'([^']*)'", first["ctx"]["expected"])
    return ValidationError(
        _N("字段 %(field)s 的值无效"),
        params={"field": field},
        field=field,
        value=first["input"],
        accepted=accepted,
    )
