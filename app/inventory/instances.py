"""`userdata/databases.yaml`: the database instances that the built-in tasks read.

instances:
  - name: orders
    kind: postgresql            # postgresql, mysql, mariadb, sqlite
    host: db1.example.com
    port: 5432                  # 5432, or 3306 for mysql and mariadb, when left out
    user: monitor
    password_file: orders.password   # or `password`; a relative path counts from this file's folder
    database: postgres          # the database to log in to (PostgreSQL; `postgres` when left out)
    tls: prefer                 # disable, prefer (default), require, verify (with `tls_ca`, a PEM file)
  - name: ledger
    kind: sqlite
    path: /data/ledger.db
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, SecretStr, model_validator
from pydantic import ValidationError as PydanticError

from app.inventory.readings import InstanceError

_DEFAULT_PORTS = {"postgresql": 5432, "mysql": 3306, "mariadb": 3306}
_KINDS = (*_DEFAULT_PORTS, "sqlite")


class InstancesFileError(ValueError):
    """databases.yaml cannot be used. One line a mistake: `file:line: field: what is wrong`; no values."""


def _beside_file(value: Any, info: Any) -> Any:
    return info.context / Path(value).expanduser() if isinstance(value, str) and value else value


_FilePath = Annotated[Path, BeforeValidator(_beside_file)]


def _one_word(value: str) -> str:
    # It stands in `instance=NAME` of the reports.
    if not re.fullmatch(r"[^\s=\"']{1,100}", value):
        raise ValueError("expected 1 to 100 characters without blanks, quotes and =")
    return value


_Name = Annotated[str, AfterValidator(_one_word)]


class _Instance(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)

    name: _Name


class ServerInstance(_Instance):
    """A database server, reached over the network."""

    kind: Literal["postgresql", "mysql", "mariadb"]
    host: Annotated[str, Field(min_length=1, max_length=253)]
    port: Annotated[int, Field(ge=1, le=65535)]
    user: Annotated[str, Field(min_length=1)]
    password: SecretStr | None = None
    password_file: _FilePath | None = None
    database: Annotated[str, Field(min_length=1)] = "postgres"
    tls: Literal["disable", "prefer", "require", "verify"] = "prefer"
    tls_ca: _FilePath | None = None

    @model_validator(mode="before")
    @classmethod
    def _default_port(cls, data: Any) -> Any:
        if isinstance(data, dict) and data.get("port") is None:
            return {**data, "port": _DEFAULT_PORTS.get(data.get("kind", ""))}
        return data

    @model_validator(mode="after")
    def _one_password(self) -> ServerInstance:
        if (self.password is None) == (self.password_file is None):
            raise ValueError("give either password or password_file")
        if self.tls == "verify" and self.tls_ca is None:
            raise ValueError("tls: verify needs tls_ca, the PEM file of the authority to trust")
        return self

    @property
    def address(self) -> str:
        """`host:port`, for people."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    def read_password(self) -> str:
        """The password, from its file when it has one (read anew each time, so it can be rotated)."""
        if self.password_file is None:
            return self.password.get_secret_value() if self.password is not None else ""
        try:
            return self.password_file.read_text(encoding="utf-8").rstrip("\r\n")
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or "not UTF-8 text"
            raise InstanceError(f"password_file {self.password_file}: {reason}") from None


class SqliteInstance(_Instance):
    """A SQLite file that this process can read."""

    kind: Literal["sqlite"]
    path: _FilePath

    @property
    def address(self) -> str:
        """The file's path, for people."""
        return str(self.path)


Instance = ServerInstance | SqliteInstance


def load_instances(path: Path) -> list[Instance]:
    """The instances that the file `path` declares, in its order; none when there is no such file.

    InstancesFileError names file, line and field of every mistake.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return []
    except (OSError, UnicodeDecodeError) as error:
        raise InstancesFileError(f"{path}: {getattr(error, 'strerror', None) or 'not UTF-8 text'}") from error
    return _InstancesFile(path, text).read()


class _InstancesFile:
    def __init__(self, path: Path, text: str) -> None:
        self._path = path
        self._mistakes: list[tuple[int, str]] = []
        try:
            self._root = yaml.compose(text, yaml.SafeLoader)
            self._data = yaml.safe_load(text)
        except yaml.MarkedYAMLError as error:
            # Not str(error): it quotes the line, which may hold a password. The name of an alias or a tag may
            # be one as well, when it was written without quotes.
            line = error.problem_mark.line + 1 if error.problem_mark else 1
            problem = error.problem
            if isinstance(error, (yaml.composer.ComposerError, yaml.constructor.ConstructorError)):
                problem = "a value that begins with *, & or ! needs quotes"
            raise InstancesFileError(f"{path}:{line}: not valid YAML: {problem}") from None
        except (yaml.YAMLError, ValueError) as error:
            raise InstancesFileError(f"{path}: not valid YAML: {type(error).__name__}") from None

    def read(self) -> list[Instance]:
        if self._data is None:
            return []
        self._refuse_repeated_keys(self._root)
        instances: list[Instance] = []
        for index, entry in enumerate(self._entries()):
            instance = self._instance(index, entry)
            if instance is None:
                continue
            if any(instance.name == other.name for other in instances):
                self._mistake((index, "name"), f"the name {instance.name!r} is used twice")
            instances.append(instance)
        if self._mistakes:
            lines = [f"{self._path}:{line}: {what}" for line, what in sorted(set(self._mistakes))]
            raise InstancesFileError("\n".join(lines))
        return instances

    def _entries(self) -> Sequence[Any]:
        if not isinstance(self._data, dict) or set(self._data) != {"instances"}:
            self._mistakes.append((1, "expected one key, `instances`, with a list of instances"))
            return []
        entries = self._data["instances"]
        if entries is None:
            return []
        if not isinstance(entries, list):
            self._mistake((), "expected a list")
            return []
        return entries

    def _instance(self, index: int, entry: Any) -> Instance | None:
        if not isinstance(entry, dict):
            self._mistake((index,), "expected an instance: name, kind, ...")
            return None
        model = SqliteInstance if entry.get("kind") == "sqlite" else ServerInstance
        try:
            if entry.get("kind") not in _KINDS:
                self._mistake((index, "kind"), f"expected one of {', '.join(_KINDS)}")
                return None
            return model.model_validate(entry, context=self._path.parent)
        except PydanticError as error:
            for found in error.errors(include_url=False, include_input=False, include_context=False):
                message = found["msg"].removeprefix("Value error, ")
                if found["type"] == "extra_forbidden":
                    message = f"unknown; accepted: {', '.join(model.model_fields)}"
                self._mistake((index, *found["loc"]), message)
            return None

    def _mistake(self, where: Sequence[int | str], message: str) -> None:
        field = "instances" + "".join(f"[{p + 1}]" if isinstance(p, int) else f".{p}" for p in where)
        self._mistakes.append((self._line(("instances", *where)), f"{field}: {message}"))

    def _line(self, where: Iterable[int | str]) -> int:
        """The line of the innermost thing on the way to `where` that the file really holds."""
        node, line = self._root, 1
        for part in where:
            found = None
            if isinstance(node, yaml.MappingNode):
                found = next(((k, v) for k, v in node.value if k.value == part), None)
            elif isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value):
                found = (node.value[part], node.value[part])
            if found is None:
                break
            line, node = found[0].start_mark.line + 1, found[1]
        return line

    def _refuse_repeated_keys(self, node: yaml.Node | None) -> None:
        # YAML's reader keeps the last of two equal keys in silence.
        if isinstance(node, yaml.SequenceNode):
            for item in node.value:
                self._refuse_repeated_keys(item)
        if isinstance(node, yaml.MappingNode):
            seen = set()
            for key, value in node.value:
                if key.value in seen:
                    self._mistakes.append((key.start_mark.line + 1, f"{key.value}: given twice"))
                seen.add(key.value)
                self._refuse_repeated_keys(value)
