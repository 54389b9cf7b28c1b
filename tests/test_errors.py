import pytest

from brewos_relay import errors
from brewos_relay.errors import CloseCode, DeviceExists, DeviceFileError, RelayError


def _tree(root: type[RelayError]) -> list[type[RelayError]]:
    return [root, *(child for branch in root.__subclasses__() for child in _tree(branch))]


TREE = [error for error in _tree(RelayError) if error.__module__ == errors.__name__]


def test_tree_is_printed_in_the_docstring() -> None:
    assert errors.__doc__ is not None
    for error in TREE:
        assert error.__name__ in errors.__doc__


def test_codes_tell_errors_apart() -> None:
    codes = [error.code for error in TREE]
    assert len(set(codes)) == len(codes)


def test_only_passing_troubles_are_worth_a_retry() -> None:
    assert {error for error in TREE if error.retry} == {
        errors.RelayClosing,
        errors.PeerGone,
        errors.IdentityUnavailable,
        errors.OutboundFailed,
        errors.RegistryBusy,
    }


@pytest.mark.parametrize(
    ("code", "number", "may_reconnect"),
    [
        (CloseCode.NORMAL, 1000, False),
        (CloseCode.GOING_AWAY, 1001, True),
        (CloseCode.PROTOCOL_ERROR, 1002, False),
        (CloseCode.INVALID_DATA, 1007, False),
        (CloseCode.POLICY_VIOLATION, 1008, True),
        (CloseCode.MESSAGE_TOO_BIG, 1009, False),
        (CloseCode.INTERNAL_ERROR, 1011, True),
        (CloseCode.SERVICE_RESTART, 1012, True),
        (CloseCode.TRY_AGAIN_LATER, 1013, True),
        (CloseCode.REPLACED, 4002, False),
        (CloseCode.TOKEN_REJECTED, 4002, False),
        (CloseCode.ACCESS_ENDED, 4003, False),
    ],
)
def test_close_codes_after_which_a_peer_may_reconnect(
    code: CloseCode, number: int, may_reconnect: bool
) -> None:
    assert code == number
    assert code.may_reconnect is may_reconnect


def test_every_close_code_is_in_the_table_above() -> None:
    assert len(CloseCode) == 11  # REPLACED and TOKEN_REJECTED are one


def test_device_exists_names_the_devices() -> None:
    error = DeviceExists(iter(["BRW-00000001", "BRW-00000002"]))
    assert error.device_ids == ("BRW-00000001", "BRW-00000002")
    assert str(error) == "already registered: BRW-00000001, BRW-00000002"


def test_device_file_error_names_the_line() -> None:
    error = DeviceFileError(7, "the key is too short")
    assert error.line == 7
    assert str(error) == "line 7: the key is too short"
