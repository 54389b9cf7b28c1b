from sqlalchemy import create_engine, inspect

from brewos_relay.registry.schema import device_users, devices, metadata


def test_the_tables_can_be_made_and_are_as_described() -> None:
    engine = create_engine("sqlite://")
    metadata.create_all(engine)
    tables = inspect(engine)
    assert sorted(tables.get_table_names()) == sorted(metadata.tables)
    assert tables.get_pk_constraint("devices")["constrained_columns"] == ["id"]
    assert tables.get_pk_constraint("device_users")["constrained_columns"] == ["user_id", "device_id"]
    engine.dispose()


def test_required_columns_are_not_null() -> None:
    assert [column.name for column in devices.columns if not column.nullable] == [
        "id",
        "key_hash",
        "created_at_ms",
        "registered_itself",
    ]
    assert devices.c.registered_itself.server_default is not None  # rows from before there was such a column


def test_rows_are_deleted_with_their_parents() -> None:
    belonging = {
        (table.name, column.name): foreign_key.ondelete
        for table in metadata.sorted_tables
        for column in table.columns
        for foreign_key in column.foreign_keys
    }
    assert set(belonging) == {
        ("device_users", "device_id"),
        ("device_users", "account_id"),
        ("claims", "device_id"),
        ("device_states", "device_id"),
        ("shares", "device_id"),
        ("shots", "device_id"),
        ("daily_usage", "device_id"),
        ("identities", "user_id"),
        ("known_networks", "user_id"),
        ("sessions", "user_id"),
        ("redeemed_invites", "user_id"),
        ("notices", "user_id"),
        ("refresh_tokens", "session_id"),
        ("push_subscriptions", "session_id"),
        ("push_devices", "subscription_id"),
        ("push_preferences", "user_id"),
        ("push_sent", "device_id"),
    }
    assert set(belonging.values()) == {"CASCADE"}


def test_device_users_need_no_account() -> None:
    assert not device_users.c.user_id.foreign_keys
    assert device_users.c.account_id.nullable
