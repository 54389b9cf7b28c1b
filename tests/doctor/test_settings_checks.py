from pathlib import Path

import pytest

from brewos_relay.doctor.settings_checks import list_settings, mask
from brewos_relay.settings import SECRET_SETTINGS, load_settings, variable_names

PASSWORD = "correct-horse-battery-staple-0123"
URLS = {
    "database_url": f"postgresql://relay:{PASSWORD}@db.example/relay",
    "bus": f"redis://relay:{PASSWORD}@bus.example",
}


OTHERS = {
    "facebook_app_secret": {"facebook_app_id": "123"},
    "google_client_secret": {"google_client_ids": "relay", "public_url": "https://relay.example"},
    "oidc_client_secret": {
        "oidc_client_id": "relay",
        "oidc_issuer": "https://id.example",
        "oidc_audiences": "relay",
        "public_url": "https://relay.example",
    },
}
"""Settings that a secret requires."""


@pytest.mark.parametrize("name", sorted(SECRET_SETTINGS))
def test_every_secret_setting_is_masked_and_hidden_from_the_log(name: str, tmp_path: Path) -> None:
    text = URLS.get(name, PASSWORD)
    variable = variable_names(name)[0]
    others = OTHERS.get(name, {})
    environ = {variable: text} | {variable_names(other)[0]: value for other, value in others.items()}
    rows = {row.variable: row.value for row in list_settings(environ, tmp_path / ".env")}
    assert rows[variable] != ""
    assert PASSWORD not in "".join(rows.values())
    assert PASSWORD in load_settings(environ=environ, dotenv_path=tmp_path / ".env").secrets()


def test_settings_without_secrets_are_shown() -> None:
    assert mask("database_url", "sqlite:///data/relay.db") == "sqlite:///data/relay.db"
    assert mask("public_url", "https://relay.example") == "https://relay.example"
