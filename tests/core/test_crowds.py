from brewos_relay.core.crowds import Crowds
from brewos_relay.core.grant import FULL, Grant

ADA, BOB = Grant(user_id="ada"), Grant(user_id="bob")


def test_each_user_has_those_that_came_and_have_not_gone() -> None:
    crowds = Crowds()
    for grant in (ADA, BOB, ADA):
        crowds.came(grant)
    assert (crowds.around(ADA), crowds.around(BOB)) == (2, 1)
    crowds.went(ADA)
    assert (crowds.around(ADA), crowds.around(BOB)) == (1, 1)


def test_nobody_is_remembered_who_has_gone() -> None:
    crowds = Crowds()
    crowds.came(ADA)
    assert len(crowds) == 1
    crowds.went(ADA)
    assert len(crowds) == 0
    assert crowds.around(ADA) == 0


def test_clients_whose_token_names_the_device_or_nobody_are_not_counted() -> None:
    crowds = Crowds()
    for grant in (Grant(user_id="ada", by_token=True), FULL):
        crowds.came(grant)
        assert crowds.around(grant) == 0
        assert crowds.around(ADA) == 0
        crowds.went(grant)
    assert len(crowds) == 0
