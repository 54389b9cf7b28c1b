from pathlib import Path

import pytest

from brewos_relay.doctor.settings_checks import list_settings, mask
from brewos_relay.settings import SECRET_SETTINGS, Settings, variable_names

PASSWORD = "correct-horse-battery-staple-0123"
URLS = {
    "database_url": f"postgresql://relay:{PASSWORD}@db.example/relay",
    "bus": f"redis://relay:{PASSWORD}@bus.example",
}


@pytest.mark.parametrize("name", sorted(SECRET_SETTINGS))
def test_every_secret_setting_is_masked_and_hidden_from_the_log(name: str, tmp_path: Path) -> None:
    text = URLS.get(name, PASSWORD)
    variable = variable_names(name)[0]
    rows = {row.variable: row.value for row in list_settings({variable: text}, tmp_path / ".env")}
    assert rows[variable] != ""
    assert PASSWORD not in "".join(rows.values())
    others = {"facebook_app_id": "123"} if name == "facebook_app_secret" else {}
    assert PASSWORD in Settings(**{name: text}, **others).secrets()  # type: ignore[arg-type]


def test_settings_without_secrets_are_shown() -> None:
    assert mask("database_url", "sqlite:///data/relay.db") == "sqlite:///data/relay.db"
    assert mask("public_url", "https://relay.example") == "https://relay.example"
