"""databases.yaml: what it may hold, and how its mistakes are told."""

from __future__ import annotations

from textwrap import dedent

import pytest

from app.inventory import InstanceError, InstancesFileError, ServerInstance, SqliteInstance, load_instances


@pytest.fixture
def write(tmp_path):
    def write(text: str):
        path = tmp_path / "databases.yaml"
        path.write_text(dedent(text).lstrip("\n"), encoding="utf-8")
        return path

    return write


def test_instances_are_read_in_order(write, tmp_path):
    instances = load_instances(
        write("""
            instances:
              - {name: orders, kind: postgresql, host: db1, user: monitor, password_file: secret/orders}
              - {name: shop, kind: mariadb, host: "::1", port: 3307, user: m, password: "p"}
              - {name: old, kind: mysql, host: db3, user: m, password: "", tls: verify, tls_ca: ca.pem}
              - {name: 账本, kind: sqlite, path: data/ledger.db}
        """)
    )
    assert [(one.name, one.kind, one.address) for one in instances] == [
        ("orders", "postgresql", "db1:5432"),
        ("shop", "mariadb", "[::1]:3307"),
        ("old", "mysql", "db3:3306"),
        ("账本", "sqlite", str(tmp_path / "data" / "ledger.db")),
    ]
    orders, shop, old, ledger = instances
    assert isinstance(orders, ServerInstance)
    assert orders.database == "postgres"
    assert orders.tls == "prefer"
    assert isinstance(shop, ServerInstance)
    assert shop.read_password() == "p"
    assert isinstance(old, ServerInstance)
    assert old.tls_ca == tmp_path / "ca.pem"
    assert isinstance(ledger, SqliteInstance)


def test_password_file_is_read_beside_the_file_and_anew_each_time(write, tmp_path):
    (instance,) = load_instances(write("instances: [{name: a, kind: mysql, host: h, user: u, password_file: p.txt}]"))
    assert isinstance(instance, ServerInstance)
    with pytest.raises(InstanceError, match="No such file"):
        instance.read_password()
    (tmp_path / "p.txt").write_text("first\n")
    assert instance.read_password() == "first"
    (tmp_path / "p.txt").write_text(" second ")
    assert instance.read_password() == " second "
    (tmp_path / "p.txt").write_bytes(b"\xff")
    with pytest.raises(InstanceError, match="not UTF-8"):
        instance.read_password()


@pytest.mark.parametrize("text", ["", "# nothing yet\n", "instances:\n", "instances: []\n"])
def test_no_instances(write, text):
    assert load_instances(write(text)) == []


def test_a_missing_file_declares_nothing(tmp_path):
    assert load_instances(tmp_path / "databases.yaml") == []


def test_every_mistake_names_line_and_field(write):
    path = write("""
        instances:
          - name: orders
            kind: postgresql
            host: db1
            port: 99999
            user: monitor
            password: hunter2
            pasword_file: x
          - name: orders
            kind: sqlite
            path: a.db
          - kind: oracle
          - name: two words
            kind: mysql
            host: db2
            user: m
          - just text
          - name: orders
            kind: sqlite
            path: b.db
    """)
    with pytest.raises(InstancesFileError) as caught:
        load_instances(path)
    lines = str(caught.value).replace(str(path), "FILE").splitlines()
    assert [line.partition(": ")[::2] for line in lines] == [
        ("FILE:5", "instances[1].port: Input should be less than or equal to 65535"),
        (
            "FILE:8",
            "instances[1].pasword_file: unknown; accepted: name, kind, host, port, user, password,"
            " password_file, database, tls, tls_ca",
        ),
        ("FILE:12", "instances[3].kind: expected one of postgresql, mysql, mariadb, sqlite"),
        ("FILE:13", "instances[4].name: expected 1 to 100 characters without blanks, quotes and ="),
        ("FILE:17", "instances[5]: expected an instance: name, kind, ..."),
        ("FILE:18", "instances[6].name: the name 'orders' is used twice"),
    ]


@pytest.mark.parametrize(
    ("text", "line", "said"),
    [
        ("just text", 1, "expected one key, `instances`"),
        ("databases: []", 1, "expected one key, `instances`"),
        ("instances: 7", 1, "expected a list"),
        ("instances: {a: 1}", 1, "expected a list"),
        ("instances:\n  - {name: a, kind: sqlite}", 2, "instances[1].path: Field required"),
        ("instances:\n  - {name: a, kind: mysql, host: h, user: u}", 2, "either password or password_file"),
        (
            "instances:\n  - {name: a, kind: mysql, host: h, user: u, password: p, password_file: f}",
            2,
            "either password or password_file",
        ),
        (
            "instances:\n  - {name: a, kind: mysql, host: h, user: u, password: p, tls: verify}",
            2,
            "tls: verify needs tls_ca",
        ),
        ("instances:\n  - name: a\n    name: b\n    kind: sqlite\n    path: x", 3, "name: given twice"),
        ("instances:\n  - {name: a\n", 3, "not valid YAML"),
        ("instances:\n\t- a", 2, "not valid YAML"),
        ("instances: [{name: 7, kind: sqlite, path: x}]", 1, "instances[1].name: Input should be a valid string"),
        ("instances: [{name: a, kind: [sqlite], path: x}]", 1, "instances[1].kind: expected one of"),
    ],
)
def test_mistakes(write, text, line, said):
    path = write(text)
    with pytest.raises(InstancesFileError) as caught:
        load_instances(path)
    assert str(caught.value).startswith(f"{path}:{line}: ")
    assert said in str(caught.value)


def test_no_password_is_ever_shown(write):
    fine = "{name: a, kind: mysql, host: h, user: u, password: hunter2}"
    (instance,) = load_instances(write(f"instances: [{fine}]"))
    assert "hunter2" not in repr(instance)
    for broken in (
        "{name: a, kind: mysql, host: h, user: u, password: [hunter2]}",
        "{name: a, kind: mysql, user: u, password: hunter2}",
        "{name: a, kind: mysql, password: hunter2",
        "{name: a, kind: mysql, password: 'hunter2}",
        "{name: a, password: *hunter2}",
        "{name: a, password: !hunter2 x}",
    ):
        with pytest.raises(InstancesFileError) as caught:
            load_instances(write(f"instances: [{broken}]"))
        assert "hunter2" not in str(caught.value), broken
        assert "hunter2" not in repr(caught.value.__cause__)


def test_a_file_that_is_no_text_is_refused(tmp_path):
    (tmp_path / "databases.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InstancesFileError, match="not UTF-8"):
        load_instances(tmp_path / "databases.yaml")
