from sqlalchemy import create_engine, inspect

from brewos_relay.registry.schema import device_users, devices, metadata


def test_the_tables_can_be_made_and_are_as_described() -> None:
    engine = create_engine("sqlite://")
    metadata.create_all(engine)
    tables = inspect(engine)
    assert sorted(tables.get_table_names()) == ["device_users", "devices"]
    assert tables.get_pk_constraint("devices")["constrained_columns"] == ["id"]
    assert tables.get_pk_constraint("device_users")["constrained_columns"] == ["user_id", "device_id"]
    engine.dispose()


def test_what_must_be_there() -> None:
    assert [column.name for column in devices.columns if not column.nullable] == [
        "id",
        "key_hash",
        "created_at_ms",
    ]
    (foreign_key,) = device_users.foreign_keys
    assert foreign_key.ondelete == "CASCADE"
